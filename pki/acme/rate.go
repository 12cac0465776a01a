package acme

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"
)

// rateWindow is the time in which Config.OrdersPerHour counts.
const rateWindow = time.Hour

// orderBook remembers on disk when orders were made, and bounds them.
type orderBook struct {
	path  string
	limit int // of a name within rateWindow

	mu    sync.Mutex
	times map[string][]int64 // guarded by mu: name → Unix times, oldest first
}

// load reads the book. A damaged one is as an empty one, and why is returned: it must not keep certificates from being
// renewed.
func (b *orderBook) load() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.times = make(map[string][]int64)
	data, _, err := readFile(b.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var times map[string][]int64
	if err := json.Unmarshal(data, &times); err != nil {
		return fmt.Errorf("%s: %w", b.path, err)
	}
	for name, list := range times {
		slices.Sort(list)
		b.times[name] = list[max(0, len(list)-maxOrdersPerHour):]
	}
	return nil
}

// take counts an order for name at now, on disk first. It returns how long to wait if there were too many already. An
// order that cannot be counted must not be made.
func (b *orderBook) take(name string, now time.Time) (wait time.Duration, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forget(now)
	list := b.times[name]
	if len(list) >= b.limit {
		oldest := time.Unix(list[len(list)-b.limit], 0)
		return max(oldest.Add(rateWindow).Sub(now), time.Second), nil
	}
	b.times[name] = append(list, now.Unix())
	data, err := json.Marshal(b.times)
	if err == nil {
		err = writeFile(b.path, data)
	}
	if err != nil {
		b.times[name] = list
		return 0, err
	}
	return 0, nil
}

// forget drops orders that are over rateWindow old, of whatever name. Those of a time to come, which a clock that was
// wrong has left, count from now on.
func (b *orderBook) forget(now time.Time) {
	for name, list := range b.times {
		kept := make([]int64, 0, len(list)+1)
		for _, at := range list {
			if at = min(at, now.Unix()); at > now.Add(-rateWindow).Unix() {
				kept = append(kept, at)
			}
		}
		if b.times[name] = kept; len(kept) == 0 {
			delete(b.times, name)
		}
	}
}
