-- Included by scripts that put a request on a queue or take it off one. Every queue is a stream with the group `g` and a
-- ledger; a lane has a fair index besides (ADR 0012). q names the keys: queue, ledger, and for a lane fair.
--
-- waiting(q, tenant): what the ledger says: v, n, c, b, then n, c, f of the tenant, then t, then a of the tenant.
-- enqueue(q, rid, tenant, cost, bytes, again, v, price): returns the entry's id. v: what `waiting` has just said, if it was
-- asked. price: what the tenant owes for it in its share of the lane, of its cost; 1 if not given.
-- In a lane the tenants share by start-time fair queueing over cost: a request's start tag is where its tenant's last request
-- ends, at least the lane's virtual time if nothing of its tenant waits, and the smallest tag is served first. again: it had
-- started before, so it owes nothing and comes before what has not: its tag is below 0, in the order of the entries. The
-- group starts at 0, so that nothing is skipped after a flush.
-- lane_among(name, key, arg): the lane of that name, as such a q, and its name. KEYS from number `key` on are queue, fair and
-- ledger of each lane, ARGV from number `arg` on are their names; of a name that is not among them it is the last.
-- dequeue(q, entry, tenant, cost, bytes, served): the entry is gone from everywhere; safe to call twice. served: because its
-- turn to start has come.
-- Ledger: v, virtual time; n, c, b, t: requests, tokens, bytes, tenants that wait; n:<tenant>, c:<tenant> of them;
-- f:<tenant>, finish tag; a:<tenant>, what a tenant of a lane got since it began to wait: 'start tag of its first request,
-- tokens served, largest cost' (see survey). An empty queue has no ledger: where nobody waits, nobody owes anybody anything.
local function waiting(q, tenant)
  return redis.call('HMGET', q.ledger, 'v', 'n', 'c', 'b', 'n:' .. tenant, 'c:' .. tenant, 'f:' .. tenant, 't', 'a:' .. tenant)
end

local function lane_among(name, key, arg)
  for i = arg, #ARGV do
    local at = key + 3 * (i - arg)
    if ARGV[i] == name or i == #ARGV then
      return {queue = KEYS[at], fair = KEYS[at + 1], ledger = KEYS[at + 2]}, ARGV[i]
    end
  end
end

-- a tag of what had started; exact, since 2^43 ms are more than Unix time has
local function tag_again(entry)
  local ms, seq = entry:match('^(%d+)-(%d+)$')
  return ms + math.min(seq, 1023) / 1024 - 2 ^ 43
end

local function enqueue(q, rid, tenant, cost, bytes, again, v, price)
  local entry = redis.call('XADD', q.queue, 'NOMKSTREAM', '*', 'rid', rid, 'cost', cost)
  if not entry then
    redis.call('XGROUP', 'CREATE', q.queue, 'g', '0', 'MKSTREAM')
    entry = redis.call('XADD', q.queue, '*', 'rid', rid, 'cost', cost)
  end
  v = v or waiting(q, tenant)
  local fields = {'n', (v[2] or 0) + 1, 'c', (v[3] or 0) + cost, 'b', (v[4] or 0) + bytes,
    'n:' .. tenant, (v[5] or 0) + 1, 'c:' .. tenant, (v[6] or 0) + cost}
  local function also(name, value) fields[#fields + 1], fields[#fields + 2] = name, value end
  if not v[5] then also('t', (v[8] or 0) + 1) end
  if q.fair then
    local start, finish, own = tonumber(v[1] or '0'), tonumber(v[7] or '0'), v[5] and v[7]
    if again then
      finish = math.max(start, finish)
    else
      if own then
        start = finish
      else
        local head = start > 0 and redis.call('ZRANGEBYSCORE', q.fair, '0', '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
        -- no further behind the head than its own cost, or the head's tenant would get more than its share meanwhile
        start = math.max(finish, head and math.min(start, head + cost) or start)
      end
      finish = start + cost * (price or 1)
    end
    also('f:' .. tenant, finish)
    if not v[5] then also('a:' .. tenant, string.format('%.14g 0 %s', start, cost)) end
    redis.call('ZADD', q.fair, again and tag_again(entry) or start, entry)
  end
  redis.call('HSET', q.ledger, unpack(fields))
  return entry
end

local function dequeue(q, entry, tenant, cost, bytes, served)
  redis.call('XACK', q.queue, 'g', entry)
  if q.fair then redis.call('ZREM', q.fair, entry) end
  if redis.call('XDEL', q.queue, entry) == 0 then return end
  local v = waiting(q, tenant)
  local left, of_tenant = (v[2] or 0) - 1, (v[5] or 0) - 1
  if left <= 0 then
    redis.call('DEL', q.ledger)
    return
  end
  local fn, fc, ff, fa = 'n:' .. tenant, 'c:' .. tenant, 'f:' .. tenant, 'a:' .. tenant
  local fields = {'n', left, 'c', (v[3] or 0) - cost, 'b', (v[4] or 0) - bytes}
  if of_tenant > 0 then
    fields[7], fields[8], fields[9], fields[10] = fn, of_tenant, fc, (v[6] or 0) - cost
    if served and v[9] then
      local since, got, largest = v[9]:match('^(%S+) (%S+) (%S+)$')
      fields[11], fields[12] = fa, string.format('%s %.14g %.14g', since, got + cost, math.max(largest, cost))
    end
  else
    if v[5] then fields[7], fields[8] = 't', math.max(0, (v[8] or 0) - 1) end
    redis.call('HDEL', q.ledger, fn, fc, fa)
    -- a finish tag that lies behind is no debt any more
    if tonumber(v[7] or '0') <= tonumber(v[1] or '0') then redis.call('HDEL', q.ledger, ff) end
  end
  redis.call('HSET', q.ledger, unpack(fields))
end
