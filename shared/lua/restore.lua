-- restore: gives a worker back a request that it runs, after the server has lost history: flushed, restarted without its
-- data, failed over to a server that lagged. The worker has what it has published, and it alone has published it.
-- What others have written meanwhile is never overwritten: the log must be the beginning of what the worker says it is.
-- @include clock enqueue finish
-- KEYS  1 dead  2 run  3 rec  4 body  5 log  6 chan  7 tenants  8 deadlines  9 workers  10 box  11 idem
--       12 run of the owner as last seen  13 queue as last seen  14 fair (the queue again where it has none)  15 ledger
-- ARGV  1 worker id  2 rid  3 attempt id  4 facts: the record as the claim left it, as `claim` answered it  5 body
--       6 the log (bytes)  7 how long its last frame is (bytes, 0 = none is to be published again)
--       8 '1' = the attempt is at its end: it goes before another one that has added nothing
--       9 owner as last seen  10 queue as last seen  11 '1' = the last frame has been published before, too
-- Returns  {'OK'}                    the worker owns it, the log is what the worker says; also when that was so before
--          {'RETRY', owner, queue}   owner or queue are others than was thought: call again
--          {'STALE'}                 somebody else's, rightly; or it has ended; or nobody has seen any of it, and another
--                                    request answers for its idempotency key by now
--          {'DIFFERS'}               the worker's, but the log is not the beginning of what the worker has written
-- Error 'FENCED' when the worker is condemned: then its requests were taken from it for good.
-- Idempotent. Of the missing frames only the last is published: whoever misses more than that reads the log.
if redis.call('EXISTS', KEYS[1]) == 1 then return redis.error_reply('FENCED') end
local v = redis.call('HMGET', KEYS[3], 'state', 'attempt', 'owner', 'queue', 'entry', 'cancel', 'tenant', 'cost',
  'bytes')
local state, ours, log = v[1], ARGV[6], redis.call('GET', KEYS[5]) or ''
local begins = #log <= #ours and ours:sub(1, #log) == log
-- the attempt of a worker that was condemned, and goes on under another id, is still that of the old id
local mine = state == 'running' and v[2] == ARGV[3] and v[3] == ARGV[1]
local fields = cmsgpack.unpack(ARGV[4])
local facts = {}
for i = 1, #fields, 2 do facts[fields[i]] = fields[i + 1] end
local deadline_ms, last = tonumber(facts['deadline_ms'] or '0'), tonumber(ARGV[7])
if mine then
  if not begins then return {'DIFFERS'} end
elseif state == 'running' then
  if not begins or (#log == #ours and ARGV[8] ~= '1') then return {'STALE'} end
  if v[3] ~= ARGV[9] then return {'RETRY', v[3], '-'} end
  redis.call('HDEL', KEYS[12], ARGV[2])
elseif state == 'queued' then
  if not begins then return {'STALE'} end
  if v[4] ~= ARGV[10] then return {'RETRY', '-', v[4]} end
  local q = {queue = KEYS[13], ledger = KEYS[15], fair = KEYS[14] ~= KEYS[13] and KEYS[14] or nil}
  dequeue(q, v[5], v[7] or '', v[8] or 0, v[9] or 0)
elseif state or not begins or (deadline_ms > 0 and now_ms() > deadline_ms + 600000) then
  return {'STALE'} -- as to the deadline: so late the record of a request that has ended may be gone by rights
elseif facts['idem'] and #ours == last and ARGV[11] ~= '1' then
  -- its readers come again with the key and are led to that one: two would be two answers to one key
  local bound = redis.call('GET', KEYS[11])
  if bound and bound ~= ARGV[2] .. '|' .. facts['fingerprint'] then return {'STALE'} end
end
if not mine then
  redis.call('HSET', KEYS[3], unpack(fields))
  redis.call('HSET', KEYS[3], 'state', 'running', 'owner', ARGV[1], 'attempt', ARGV[3])
  if not state then
    redis.call('SET', KEYS[4], ARGV[5])
    redis.call('HINCRBY', KEYS[7], facts['tenant'], 1)
    if facts['idem'] then
      redis.call('SET', KEYS[11], ARGV[2] .. '|' .. facts['fingerprint'], 'NX', 'PX', facts['idem_ttl_ms'])
    end
  end
  if deadline_ms > 0 then redis.call('ZADD', KEYS[8], deadline_ms, ARGV[2]) end
  if v[6] then redis.call('RPUSH', KEYS[10], 'cancel ' .. ARGV[2]) end
end
redis.call('HSETNX', KEYS[9], ARGV[1], '')
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
if #log < #ours then redis.call('SET', KEYS[5], ours) end
if last > 0 then publish(KEYS[6], #ours, ours:sub(-last)) end
return {'OK'}
