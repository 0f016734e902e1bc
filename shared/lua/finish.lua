-- Shared by every script that ends a request (included, never called alone).
--
-- finish(k, rid, state, reason, frame, ttl_ms): the one place where a request becomes terminal. The caller has checked
-- that the record is not terminal yet. k names the keys: rec, log, body, chan, tenants, deadlines, fin.
-- Appends and publishes the terminal frame, writes the record, releases the tenant's place, drops the body and the
-- deadline, and puts one entry into the outbox. The log stays for the record's `keep_ms`, else for ttl_ms; the record
-- stays longer, so that a result that is gone can be told from a request that never was. Cost: about 10 commands.
--
-- publish(chan, log_len, frame): one live message, msgpack [log length after the frame, frame], so that a reader knows
-- where the frame starts. Returns the number of receivers.
local function publish(chan, log_len, frame)
  return redis.call(PUBLISH, chan, struct.pack('>BBI4', 0x92, 0xce, log_len) .. frame)
end

local function finish(k, rid, state, reason, frame, ttl_ms)
  local v = redis.call('HMGET', k.rec, 'tenant', 'keep_ms')
  local tenant, keep_ms = v[1], tonumber(v[2] or ttl_ms)
  local log_len = redis.call('APPEND', k.log, frame)
  local heard = publish(k.chan, log_len, frame)
  redis.call('HSET', k.rec, 'state', state, 'reason', reason, 'finished_at_ms', now_ms(), 'heard', heard)
  redis.call('HDEL', k.rec, 'owner', 'attempt')
  redis.call('DEL', k.body)
  redis.call('ZREM', k.deadlines, rid)
  if tenant and redis.call('HINCRBY', k.tenants, tenant, -1) <= 0 then redis.call('HDEL', k.tenants, tenant) end
  redis.call('XADD', k.fin, 'MAXLEN', '~', '100000', '*', 'rid', rid, 'state', state, 'reason', reason)
  redis.call('PEXPIRE', k.rec, keep_ms + 600000)
  redis.call('PEXPIRE', k.log, keep_ms)
end
