-- cancel: queued -> cancelled at once; running -> its owner is told through the box and ends it. Idempotent.
-- @include clock enqueue finish
-- KEYS  1 rec  2 queue  3 box of the owner  4 body  5 log  6 chan  7 tenants  8 deadlines  9 fin
--       10 control channel of the owner  11 fair (the queue again where it has none)  12 ledger
-- ARGV  1 rid  2 owner as last seen  3 queue as last seen  4 reason  5 terminal frame  6 result TTL (ms)
-- Returns  'DONE' ended here   'SENT' the owner was told   'RETRY' owner or queue has changed: look again
--          'GONE' no record    or the terminal state that the request is in
local v = redis.call('HMGET', KEYS[1], 'state', 'owner', 'queue', 'entry', 'tenant', 'cost', 'bytes')
local state = v[1]
if not state then return 'GONE' end
if state == 'queued' then
  if v[3] ~= ARGV[3] then return 'RETRY' end
  local q = {queue = KEYS[2], ledger = KEYS[12], fair = KEYS[11] ~= KEYS[2] and KEYS[11] or nil}
  dequeue(q, v[4], v[5] or '', v[6] or 0, v[7] or 0)
  local k = {rec = KEYS[1], body = KEYS[4], log = KEYS[5], chan = KEYS[6], tenants = KEYS[7], deadlines = KEYS[8], fin = KEYS[9]}
  finish(k, ARGV[1], 'cancelled', ARGV[4], ARGV[5], ARGV[6])
  return 'DONE'
end
if state == 'running' then
  if v[2] ~= ARGV[2] then return 'RETRY' end
  redis.call('HSET', KEYS[1], 'cancel', ARGV[4])
  redis.call('RPUSH', KEYS[3], 'cancel ' .. ARGV[1])
  redis.call('PEXPIRE', KEYS[3], 60000)
  redis.call(PUBLISH, KEYS[10], 'cancel ' .. ARGV[1]) -- sooner than the box, which waits for a flush or a beat
  return 'SENT'
end
return state
