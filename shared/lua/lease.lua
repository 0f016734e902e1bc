-- Included by scripts that a worker calls. A lapsed lease is not death: it is renewed unless a reaper has condemned the
-- worker id, so a worker that slept through a failover revives and nothing is redelivered for nothing.
local function renew(lease, dead, lease_ms)
  if redis.call('EXISTS', dead) == 1 then return false end
  redis.call('SET', lease, '1', 'PX', lease_ms)
  return true
end
