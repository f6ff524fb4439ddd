-- What wrk asks the site for: the home page, and each item in turn.
local at = 0

function request()
  at = at + 1
  if at % 4 == 0 then return wrk.format("GET", "/") end
  return wrk.format("GET", "/items/" .. (at % 120))
end
