-- ARGV: epoch, ticket, cycle
if not open() then return UNREADABLE end
for _, w in ipairs(call('ZRANGE', Q, 0, -1)) do
  local _, _, ticket = waiter(w)
  if ticket == ARGV[2] then
    call('ZREM', Q, w)
    publish(ticket, 'd' .. ticket .. ' ' .. ARGV[3])
    pass_on()
    return 1
  end
end
return 0
