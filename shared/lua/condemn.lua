-- condemn: the only way a worker id dies. Fails while its lease lives, unless whoever calls saw the process end.
-- KEYS  1 lease  2 dead      ARGV  1 how long the marker stays (ms)  2 '1' = the process is known to have ended
-- Returns  1 condemned (or was already), 0 the lease lives.
if redis.call('EXISTS', KEYS[1]) == 1 then
  if ARGV[2] ~= '1' then return 0 end
  redis.call('DEL', KEYS[1])
end
redis.call('SET', KEYS[2], '1', 'PX', ARGV[1])
return 1
