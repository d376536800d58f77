// The go-redis that Debian packages (v5), on the sidecar's socket: a line for each step; a mismatch ends it with an error.
package main

import (
	"bufio"
	"fmt"
	"os"
	"reflect"
	"time"

	"gopkg.in/redis.v5"
)

func check(step string, err error, pairs ...interface{}) {
	if err != nil {
		fail("%s: %v", step, err)
	}
	for at := 0; at < len(pairs); at += 2 {
		if !reflect.DeepEqual(pairs[at], pairs[at+1]) {
			fail("%s: %#v instead of %#v", step, pairs[at], pairs[at+1])
		}
	}
}

func fail(format string, arguments ...interface{}) {
	fmt.Fprintf(os.Stderr, format+"\n", arguments...)
	os.Exit(1)
}

func get(cache *redis.Client, key string) string {
	value, err := cache.Get(key).Result()
	check("GET "+key, err)
	return value
}

func main() {
	cache := redis.NewClient(&redis.Options{Network: "unix", Addr: os.Getenv("CADDY_SOCKET"), MaxRetries: 5})
	pong, err := cache.Ping().Result()
	check("connected", err, pong, "PONG")
	fmt.Println("connected")

	check("SET", cache.Set("user:1", "Ada", 10*time.Minute).Err())
	for range [3]int{} {
		check("hit", nil, get(cache, "user:1"), "Ada")
	}
	if err := cache.Get("user:2").Err(); err != redis.Nil {
		fail("an absent key: %v", err)
	}
	fmt.Println("hit")

	counts := make([]*redis.IntCmd, 100)
	_, err = cache.Pipelined(func(pipe *redis.Pipeline) error {
		for n := range counts {
			pipe.Set(fmt.Sprint("n:", n), n, 0)
			counts[n] = pipe.Incr(fmt.Sprint("n:", n))
		}
		return nil
	})
	check("pipeline", err)
	for n, count := range counts {
		check("pipeline", nil, count.Val(), int64(n+1))
	}
	fmt.Println("pipeline")

	var value *redis.StringCmd
	_, err = cache.TxPipelined(func(pipe *redis.Pipeline) error {
		pipe.Set("a", 1, 0)
		pipe.Incr("a")
		value = pipe.Get("a")
		return nil
	})
	check("transaction", err, value.Val(), "2", get(cache, "a"), "2")
	fmt.Println("transaction")

	err = cache.Watch(func(tx *redis.Tx) error {
		seen := tx.Get("a").Val()
		check("SET", cache.Set("a", "other", 0).Err())
		_, err := tx.Pipelined(func(pipe *redis.Pipeline) error {
			return pipe.Set("a", seen+"!", 0).Err()
		})
		return err
	}, "a")
	if err != redis.TxFailedErr {
		fail("conflict: %v", err)
	}
	check("conflict", nil, get(cache, "a"), "other")
	fmt.Println("conflict")

	channel, err := cache.Subscribe("news")
	check("SUBSCRIBE", err)
	_, err = channel.Receive()
	check("SUBSCRIBE", err)
	receivers, err := cache.Publish("news", "hello").Result()
	check("PUBLISH", err, receivers, int64(1))
	message, err := channel.ReceiveMessage()
	check("pubsub", err, message.Payload, "hello")
	check("pubsub", channel.Close())
	fmt.Println("pubsub")

	double := redis.NewScript("local v = redis.call('GET', KEYS[1]) * 2; redis.call('SET', KEYS[1], v); return v")
	check("SET", cache.Set("s", 21, 0).Err(), get(cache, "s"), "21")
	doubled, err := double.Run(cache, []string{"s"}).Result()
	check("script", err, doubled, int64(42), get(cache, "s"), "42")
	fmt.Println("script")

	time.AfterFunc(100*time.Millisecond, func() { cache.RPush("queue", "job") })
	job, err := cache.BLPop(10*time.Second, "queue").Result()
	check("blocking", err, job, []string{"queue", "job"})
	fmt.Println("blocking")

	fmt.Println("restart")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		fail("restart: %v", err)
	}
	check("reconnected", nil, get(cache, "user:1"), "Ada")
	check("reconnected", cache.Set("user:1", "Eve", 0).Err(), get(cache, "user:1"), "Eve")
	fmt.Println("reconnected")
}
