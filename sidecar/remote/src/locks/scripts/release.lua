-- ARGV: epoch, owner, counter. Whether it was held until now.
local owner, token = ARGV[2], ARGV[3]
local held, since, lease, by = match(s[3] or '', '^(%d+):(%d+):(%d+):[^:]*:(.*)$')
if held == token and by == owner and since + lease > now + 0 then
  if not s[4] then
    call('HDEL', S, X)
    return 1
  end
  -- The usual hand-over, to an exclusive waiter that lives and is told; all others are the rest's, which makes a lot more
  -- ready first. Granted before it is told, see there.
  local first = try('ZRANGE', Q, 0, 0)[1]
  local ticket, its_client = match(first or '', '^x:%d+:(([^:]*)%-%d+):')
  local till = is_later and ticket and tonumber(call('ZSCORE', L, its_client) or 0)
  if till and till >= now + 0 and till <= now + ALIVE then
    call('HSET', S, 'c', now, X, now .. ':' .. now .. ':' .. sub(first, 3))
    if publish_to(its_client, 'g' .. ticket .. ' ' .. epoch .. ' ' .. now) > 0 then
      call('ZREM', Q, first)
      return 1
    end
    s[2] = now
  end
end
