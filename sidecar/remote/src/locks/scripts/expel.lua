-- ARGV: epoch, ticket, cycle
open()
for _, w in ipairs(redis.call('ZRANGE', Q, 0, -1)) do
  local _, _, ticket = waiter(w)
  if ticket == ARGV[2] then
    redis.call('ZREM', Q, w)
    publish(ticket, 'd' .. ticket .. ' ' .. ARGV[3])
    hand_over()
    tidy()
    return {1}
  end
end
return {0}
