local lease, ticket, owner = match(asker, '^(%d+):([^:]*):(.*)$')
lease = tonumber(lease)
if sweeps then sweep() end
if not open() then return UNREADABLE end
local w = mode .. ':' .. asker
local token, held = held_by(owner)
if token then
  if held == 's' and mode == 'x' then return {'upgrade', token} end
  if held == 'x' then
    x.since, x.lease, x.ticket = t, math.max(x.lease, lease), ticket
    put_exclusive()
  else
    call('HSET', S, F, text(t))
    put_shared(owner, token, ticket, t + lease, lease)
  end
  if s[4] and call('ZREM', Q, w) == 1 then tidy() end
  return token
end

-- Whether all that wait longer share with this one; dead ones leave the queue.
local function is_next()
  local before = 0
  while before < 256 do
    local queue = call('ZRANGE', Q, before, before + 31)
    if #queue == 0 then return true end
    for _, other in ipairs(queue) do
      if other == w then return true end
      local its_mode, _, its_ticket = waiter(other)
      if is_dead(its_ticket) then
        call('ZREM', Q, other)
      elseif mode == 'x' or its_mode == 'x' then
        return false
      else
        before = before + 1
      end
    end
  end
  return false
end

if admits(mode) and is_next() then
  token = grant(owner, mode, ticket, lease)
  if call('ZREM', Q, w) == 1 and mode == 's' then hand_over() end
  tidy()
  return token
end

if ARGV[4] == '0' then return {'busy'} end
if not call('ZSCORE', Q, w) then
  if call('ZCARD', Q) >= tonumber(ARGV[4]) then return {'full'} end
  local arrival = next_counter()
  call('HSET', S, 'c', arrival, F, text(t))
  call('ZADD', Q, arrival, w)
  call('PEXPIRE', Q, TTL)
  call('SADD', C, name)
end
call('ZADD', L, text(t + ALIVE), client(ticket))
pass_on()
local ends = x and x.since + x.lease or call('ZRANGE', Z, 0, 0, 'WITHSCORES')[2]
return {'queued', text(ends and tonumber(ends) - t or ALIVE)}
