-- What wrk asks the demo's server for: mostly cheap requests, and some of each kind that costs, from people who think in between:
-- a server with some of its time left, as most have.
local routes = { "/", "/", "/", "/", "/", "/", "/read", "/read", "/hash", "/garbage" }
local think_ms_max = 100
local at = 0

function request()
  at = at % #routes + 1
  return wrk.format("GET", routes[at])
end

function delay()
  return math.random(0, think_ms_max)
end
