"""The fleet's token buckets: a script that Redis runs atomically, by its own clock.

A tenant's bucket fills at its rate up to its burst, less the tokens that instances hold. The
available tokens are granted to instances in proportion to their demand, and never a fraction of a
token to an instance that needs a whole one. A burst uses tokens of the next seconds in advance:
afterwards a `floor` under the level rises for PAY_S seconds, and tokens below it are not granted
until the tenant has rested; so ten seconds grant what they should, with or without a burst. Quotas
below SLOW_RATE, whose bursts are a few requests, have no floor.

The tokens of an instance are forgotten LEASE_S after its last call, and are then lost; so are those
that it returned in a call that failed. A bucket that Redis has lost starts full, or empty if an
instance still uses it. A clock that jumps fills a bucket at most once.
"""

from __future__ import annotations

LEASE_S = 2.0
LIVE_S = 5.0
PAY_S = 8.0
SLOW_RATE = 10.0
# Tokens are granted in steps of some tenths of a second: the most that is not a burst.
SLACK_S = 0.25
# The share of its rate below which a tenant rests.
RESTS = 0.9
KEEP_MS = 60_000

# KEYS: the instances, then one for each tenant. ARGV: the calling instance, and the packed calls,
# each [rate, burst, owed, returned, requested, demand, credit, slots, peak, is_known]. Returns the
# number of instances and, packed, [granted, share, slots] for each call.
SCRIPT = f"""
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
local me = ARGV[1]
local calls = cmsgpack.unpack(ARGV[2])
redis.call('ZADD', KEYS[1], now, me)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. (now - {LIVE_S}))
redis.call('ZREMRANGEBYSCORE', KEYS[1], '(' .. (now + {LIVE_S}), '+inf')
redis.call('PEXPIRE', KEYS[1], {KEEP_MS})
local instances = redis.call('ZCARD', KEYS[1])

local function read(key, burst, is_known)
    local kept = redis.call('GET', key)
    if kept then
        return cmsgpack.unpack(kept)
    end
    return {{level = is_known and 0 or burst, floor = 0, pay = 0, at = now, peers = {{}}}}
end

local function others(bucket)
    local held, demand, peak = 0, 0, 0
    for id, peer in pairs(bucket.peers) do
        if id == me or math.abs(now - peer[4]) > {LEASE_S} then
            bucket.peers[id] = nil
        else
            held, demand, peak = held + math.max(0, peer[1]), demand + peer[2], peak + peer[3]
        end
    end
    return held, demand, peak
end

local function fill(bucket, rate, burst, held, demand)
    local elapsed = math.max(0, now - bucket.at)
    bucket.at = now
    -- Tokens above the floor that wait for the next call are not lost.
    local highest = math.max(burst - held, bucket.floor + 2 * rate * {SLACK_S})
    bucket.level = math.min(bucket.level + rate * elapsed, math.max(bucket.level, highest))
    if rate < {SLOW_RATE} then
        return
    end
    local deepest = math.max(0, burst - rate * {SLACK_S})
    if bucket.level >= burst - held and demand <= {RESTS} * rate then
        bucket.floor, bucket.pay = 0, 0
    elseif bucket.pay == 0 and burst - held - bucket.level > rate * {SLACK_S} then
        bucket.pay = deepest / {PAY_S}
    end
    bucket.floor = math.min(deepest, bucket.floor + bucket.pay * elapsed)
end

local function grant(there, requested, demand, all)
    if requested <= 0 or there <= 0 then
        return 0
    end
    local part = there / instances
    if all > 0 then
        part = there * demand / all
    end
    local granted = math.min(requested, math.max(part, math.min(1, there)))
    if granted < 1 and requested >= 1 then
        return 0
    end
    return granted
end

local answers = {{}}
for i, call in ipairs(calls) do
    local rate, owed, returned, requested = call[1], call[3], call[4], call[5]
    -- Tokens are granted in steps; a smaller burst would lose some.
    local burst = math.max(call[2], rate * {SLACK_S})
    local demand, credit, slots, peak = call[6], call[7], call[8], call[9]
    local bucket = read(KEYS[i + 1], burst, call[10])
    local held, their_demand, their_peak = others(bucket)
    local all = demand + their_demand
    bucket.level = bucket.level - owed + returned
    fill(bucket, rate, burst, held + math.max(0, credit), all)
    local granted = grant(bucket.level - bucket.floor, requested, demand, all)
    bucket.level = bucket.level - granted
    bucket.peers[me] = {{credit + granted, demand, peak, now}}
    redis.call('SET', KEYS[i + 1], cmsgpack.pack(bucket), 'PX', {KEEP_MS})
    local share, seats = rate / instances, slots / instances
    if all > 0 then
        share = rate * demand / all
    end
    if peak + their_peak > 0 then
        seats = slots * peak / (peak + their_peak)
    end
    answers[i] = {{granted, share, seats}}
end
return {{instances, cmsgpack.pack(answers)}}
"""
