-- What wrk asks an API for: one of each kind in turn.
local basket = '{"lines":[{"id":1,"count":2},{"id":7,"count":5},{"id":250,"count":1},{"id":399,"count":4}]}'
local json = { ["Content-Type"] = "application/json" }
local at = 0

function request()
  at = at + 1
  if at % 3 == 0 then return wrk.format("POST", "/api/baskets", json, basket) end
  if at % 3 == 1 then return wrk.format("GET", "/api/report") end
  return wrk.format("GET", "/api/items/" .. (at % 400))
end
