-- redrive: a dead letter -> queued, as a new request under a new id. Noted, so that a letter is redriven once.
-- @include clock enqueue
-- KEYS  1 dlq  2 redriven  3 rec  4 body  5 queue  6 tenants  7 deadlines  8 fair  9 ledger
-- ARGV  1 entry of the letter  2 new rid  3 fingerprint  4 lane  5 body (bytes)  6 tenant  7 cost (tokens)
--       8 patience (ms from now, for start and end)  9 how long the note stays (ms)
-- Returns  {'OK', rid}    queued
--          {'DUP', rid}   was redriven before (or by this very call), as rid
--          {'GONE'}       there is no such letter
-- An operator asks for it: neither the lane's nor the tenant's bound holds it up, and it stays though nobody follows it.
local known = redis.call('HGET', KEYS[2], ARGV[1])
if known then return {'DUP', known} end
if #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then return {'GONE'} end
local now = now_ms()
local deadline_ms = now + tonumber(ARGV[8])
local entry = enqueue({queue = KEYS[5], fair = KEYS[8], ledger = KEYS[9]}, ARGV[2], ARGV[6], ARGV[7], #ARGV[5])
redis.call('SET', KEYS[4], ARGV[5])
redis.call('HSET', KEYS[3], 'state', 'queued', 'fingerprint', ARGV[3], 'lane', ARGV[4], 'queue', ARGV[4], 'entry', entry,
  'tenant', ARGV[6], 'deadline_ms', deadline_ms, 'finish_by_ms', '0', 'cost', ARGV[7],
  'bytes', #ARGV[5], 'claims', '0', 'kills', '0',
  'queued_at_ms', now, 'stays', '1')
redis.call('HINCRBY', KEYS[6], ARGV[6], 1)
redis.call('ZADD', KEYS[7], deadline_ms, ARGV[2])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[9])
return {'OK', ARGV[2]}
