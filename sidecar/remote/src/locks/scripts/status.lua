-- ARGV: epoch, most holders and waiters to tell. Returns owner, mode, counter, us left of each holder; ticket, arrival,
-- mode, owner of each waiter; and how many entries of the queue are none.
local most = tonumber(ARGV[2]) - 1
if not open() then return UNREADABLE end
local holders, waiters, foreign = {}, {}, 0
local function tell(list, ...)
  for _, field in ipairs({...}) do list[#list + 1] = field end
end
if x then tell(holders, x.owner, 'x', x.token, text(x.since + x.lease - t)) end
local shared = n > 0 and call('ZRANGE', Z, 0, most, 'WITHSCORES') or {}
for at = 1, #shared, 2 do
  local token = held_by(shared[at])
  if token then tell(holders, shared[at], 's', token, text(tonumber(shared[at + 1]) - t)) end
end
local queue = s[4] and call('ZRANGE', Q, 0, most, 'WITHSCORES') or {}
for at = 1, #queue, 2 do
  local mode, _, ticket, owner = waiter(queue[at])
  if not mode then
    foreign = foreign + 1
  elseif not is_dead(ticket) then
    tell(waiters, ticket, text(tonumber(queue[at + 1])), mode, owner)
  end
end
-- The index may have kept it from an epoch that is over.
if not s[4] then call('SREM', C, name) end
tidy()
return {'lock', holders, waiters, foreign}
