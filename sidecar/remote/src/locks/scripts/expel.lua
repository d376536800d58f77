-- ARGV: epoch, ticket, cycle. Who does not hear of it keeps its place.
if not open() then return UNREADABLE end
for _, w in ipairs(call('ZRANGE', Q, 0, -1)) do
  local _, _, ticket = waiter(w)
  if ticket == ARGV[2] then
    local arrival = call('ZSCORE', Q, w)
    call('ZREM', Q, w)
    if publish(ticket, 'd' .. ticket .. ' ' .. ARGV[3]) == 0 then
      call('ZADD', Q, arrival, w)
      return 0
    end
    pass_on()
    return 1
  end
end
return 0
