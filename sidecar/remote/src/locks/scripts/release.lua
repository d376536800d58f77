-- ARGV: epoch, owner, counter. Whether it was held until now.
local owner, token = ARGV[2], ARGV[3]
local held, ends, by = match(s[3] or '', '^(%d+):(%d+):%d+:[^:]*:(.*)$')
if held == token and by == owner and tonumber(ends) > t then
  if not s[4] then
    call('HDEL', S, X)
    return 1
  end
  -- The usual hand-over, to an exclusive waiter that lives and is told; all others are the rest's, which makes a lot more
  -- ready first. Granted before it is told, see there.
  local first = call('ZRANGE', Q, 0, 0)[1]
  local lease, ticket, its_owner = match(first or '', '^x:(%d+):([^:]*):(.*)$')
  local its_client = match(ticket or '', '^(.*)%-')
  local till = its_client and tonumber(call('ZSCORE', L, its_client) or 0)
  if till and till >= t and till <= t + ALIVE then
    local granted = text(counter)
    call('HSET', S, 'c', granted, X, format('%s:%d:%s:%s:%s', granted, t + lease, lease, ticket, its_owner))
    if call('PUBLISH', S .. ':wake:' .. its_client, 'g' .. ticket .. ' ' .. epoch .. ' ' .. granted) > 0 then
      call('ZREM', Q, first)
      return 1
    end
    counter = counter + 1
  end
end
