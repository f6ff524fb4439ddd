-- What wrk asks the demo's server for: mostly cheap requests, and some of each kind that costs.
local routes = { "/", "/", "/", "/", "/", "/", "/read", "/read", "/hash", "/garbage" }
local at = 0

request = function()
  at = at % #routes + 1
  return wrk.format("GET", routes[at])
end
