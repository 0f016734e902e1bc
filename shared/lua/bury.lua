-- bury: forgets a condemned worker once nothing is left of it: its card, its box, its consumer in every group. A consumer
-- with pending entries stays, since deleting it would lose them; the sweep of the living takes them over within seconds.
-- KEYS  1 dead  2 run  3 box  4 workers  5.. queues      ARGV  1 worker id
-- Returns  'OK' forgotten   'BUSY' it still owns requests or pending entries: come back   'ALIVE' it is not condemned
if redis.call('EXISTS', KEYS[1]) == 0 then return 'ALIVE' end
local left = redis.call('EXISTS', KEYS[2])
for i = 5, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 1 then
    if #redis.call('XPENDING', KEYS[i], 'g', '-', '+', 1, ARGV[1]) > 0 then
      left = left + 1
    else
      redis.call('XGROUP', 'DELCONSUMER', KEYS[i], 'g', ARGV[1])
    end
  end
end
if left > 0 then return 'BUSY' end
redis.call('DEL', KEYS[3])
redis.call('HDEL', KEYS[4], ARGV[1])
return 'OK'
