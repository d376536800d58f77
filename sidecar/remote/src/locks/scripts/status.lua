-- ARGV: epoch, most holders and waiters to tell. Returns owner, mode, counter, us left of each holder; and ticket,
-- arrival, mode, owner of each waiter.
local most = tonumber(ARGV[2]) - 1
open()
local holders, waiters = {}, {}
local function tell(list, ...)
  for _, field in ipairs({...}) do list[#list + 1] = field end
end
if x then tell(holders, x.owner, 'x', x.token, text(x.since + x.lease - t)) end
local shared = n > 0 and call('ZRANGE', Z, 0, most, 'WITHSCORES') or {}
for at = 1, #shared, 2 do
  tell(holders, shared[at], 's', held_by(shared[at]), text(tonumber(shared[at + 1]) - t))
end
local queue = s[4] and call('ZRANGE', Q, 0, most, 'WITHSCORES') or {}
for at = 1, #queue, 2 do
  local mode, _, ticket, owner = waiter(queue[at])
  if not is_dead(ticket) then tell(waiters, ticket, text(tonumber(queue[at + 1])), mode, owner) end
end
tidy()
return {'lock', holders, waiters}
