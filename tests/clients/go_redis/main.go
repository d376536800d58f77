// go-redis on the sidecar's socket: a line for each step; a mismatch ends it with an error.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"time"

	"github.com/redis/go-redis/v9"
)

var ctx = context.Background()

func check(step string, err error, pairs ...any) {
	if err != nil {
		fail("%s: %v", step, err)
	}
	for at := 0; at < len(pairs); at += 2 {
		if !reflect.DeepEqual(pairs[at], pairs[at+1]) {
			fail("%s: %#v instead of %#v", step, pairs[at], pairs[at+1])
		}
	}
}

func fail(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", arguments...)
	os.Exit(1)
}

func get(cache *redis.Client, key string) string {
	value, err := cache.Get(ctx, key).Result()
	check("GET "+key, err)
	return value
}

func main() {
	cache := redis.NewClient(&redis.Options{Network: "unix", Addr: os.Getenv("CADDY_SOCKET"), MaxRetries: 5})
	pong, err := cache.Ping(ctx).Result()
	check("connected", err, pong, "PONG")
	fmt.Println("connected")

	check("SET", cache.Set(ctx, "user:1", "Ada", 10*time.Minute).Err())
	for range [3]int{} {
		check("hit", nil, get(cache, "user:1"), "Ada")
	}
	if err := cache.Get(ctx, "user:2").Err(); !errors.Is(err, redis.Nil) {
		fail("an absent key: %v", err)
	}
	fmt.Println("hit")

	counts := make([]*redis.IntCmd, 100)
	_, err = cache.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for n := range counts {
			pipe.Set(ctx, fmt.Sprint("n:", n), n, 0)
			counts[n] = pipe.Incr(ctx, fmt.Sprint("n:", n))
		}
		return nil
	})
	check("pipeline", err)
	for n, count := range counts {
		check("pipeline", nil, count.Val(), int64(n+1))
	}
	fmt.Println("pipeline")

	var value *redis.StringCmd
	_, err = cache.TxPipelined(ctx, func(pipe redis.Pipeliner) error {
		pipe.Set(ctx, "a", 1, 0)
		pipe.Incr(ctx, "a")
		value = pipe.Get(ctx, "a")
		return nil
	})
	check("transaction", err, value.Val(), "2", get(cache, "a"), "2")
	fmt.Println("transaction")

	err = cache.Watch(ctx, func(tx *redis.Tx) error {
		seen := tx.Get(ctx, "a").Val()
		check("SET", cache.Set(ctx, "a", "other", 0).Err())
		_, err := tx.TxPipelined(ctx, func(pipe redis.Pipeliner) error {
			return pipe.Set(ctx, "a", seen+"!", 0).Err()
		})
		return err
	}, "a")
	if !errors.Is(err, redis.TxFailedErr) {
		fail("conflict: %v", err)
	}
	check("conflict", nil, get(cache, "a"), "other")
	fmt.Println("conflict")

	channel := cache.Subscribe(ctx, "news")
	_, err = channel.Receive(ctx)
	check("SUBSCRIBE", err)
	receivers, err := cache.Publish(ctx, "news", "hello").Result()
	check("PUBLISH", err, receivers, int64(1))
	message, err := channel.ReceiveMessage(ctx)
	check("pubsub", err, message.Payload, "hello")
	check("pubsub", channel.Close())
	fmt.Println("pubsub")

	double := redis.NewScript("local v = redis.call('GET', KEYS[1]) * 2; redis.call('SET', KEYS[1], v); return v")
	check("SET", cache.Set(ctx, "s", 21, 0).Err(), get(cache, "s"), "21")
	doubled, err := double.Run(ctx, cache, []string{"s"}).Int64()
	check("script", err, doubled, int64(42), get(cache, "s"), "42")
	fmt.Println("script")

	time.AfterFunc(100*time.Millisecond, func() { cache.RPush(ctx, "queue", "job") })
	job, err := cache.BLPop(ctx, 10*time.Second, "queue").Result()
	check("blocking", err, job, []string{"queue", "job"})
	fmt.Println("blocking")

	fmt.Println("restart")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		fail("restart: %v", err)
	}
	check("reconnected", nil, get(cache, "user:1"), "Ada")
	check("reconnected", cache.Set(ctx, "user:1", "Eve", 0).Err(), get(cache, "user:1"), "Eve")
	fmt.Println("reconnected")
}
