package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// bulkPatience is how long streams may carry nothing at all.
const bulkPatience = 20 * time.Second

// takeBulk measures throughput down and up with one and with eight streams, and what the proxies' processors spend on
// all four runs together.
func takeBulk(ctx context.Context, s *site, r *running, size *size) (values, error) {
	v := make(values)
	var cpu time.Duration
	var moved int64
	for _, one := range []struct {
		column  string
		streams int
		up      bool
	}{{colDown1, 1, false}, {colUp1, 1, true}, {colDown8, 8, false}, {colUp8, 8, true}} {
		if err := s.target.quiet(ctx); err != nil {
			return nil, err
		}
		b, err := startBulk(s.target, r.entry, one.streams, one.up)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", one.column, err)
		}
		bytes, took, spent, err := b.count(ctx, r, size.warm, size.bulk)
		b.stop()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", one.column, err)
		}
		v[one.column] = float64(bytes) / took.Seconds() / megabyte
		v[one.column+"_cpu"] = spent.Seconds() / took.Seconds()
		moved += bytes
		cpu += spent
	}
	v[colCPU] = cpu.Seconds() / (float64(moved) / gigabyte)
	return v, nil
}

// bulk is a number of streams that carry as much as they can.
type bulk struct {
	conns  []*net.TCPConn
	bytes  *atomic.Int64 // that have arrived
	before int64         // what bytes was when the streams were opened
	done   sync.WaitGroup
	ended  atomic.Bool
	mu     sync.Mutex
	err    error // the first fault before stop, guarded by mu
}

// startBulk opens streams that read from the target, or write to it.
func startBulk(t *target, addr string, streams int, up bool) (*bulk, error) {
	b := &bulk{bytes: new(atomic.Int64)}
	ask := byte(askSource)
	if up {
		ask, b.bytes = askSink, &t.received
		b.before = b.bytes.Load()
	}
	for range streams {
		c, err := dialFrom(addr, 0)
		if err != nil {
			b.stop()
			return nil, err
		}
		b.conns = append(b.conns, c)
		if _, err := c.Write([]byte{ask}); err != nil {
			b.stop()
			return nil, err
		}
		// Either ends when stop closes the connection; stop waits.
		b.done.Go(func() {
			if up {
				b.note(write(c, t.source))
			} else {
				b.note(b.read(c))
			}
		})
	}
	return b, nil
}

// read counts what arrives on c.
func (b *bulk) read(c net.Conn) error {
	buf := make([]byte, bulkBytes)
	for {
		n, err := c.Read(buf)
		b.bytes.Add(int64(n))
		if err != nil {
			return err
		}
	}
}

// write sends buf to c over and over.
func write(c io.Writer, buf []byte) error {
	for {
		if _, err := c.Write(buf); err != nil {
			return err
		}
	}
}

// note keeps the error of a stream that ended by itself.
func (b *bulk) note(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.ended.Load() && b.err == nil {
		b.err = err
	}
}

// count lets the streams run for warm after the first bytes have arrived, and then says what arrived within d, and what
// the proxies spent meanwhile. If nothing arrives within d it waits for longer.
func (b *bulk) count(ctx context.Context, r *running, warm, d time.Duration) (bytes int64, took, cpu time.Duration, err error) {
	if err := b.arrives(ctx, b.before); err != nil {
		return 0, 0, 0, err
	}
	if err := pause(ctx, warm); err != nil {
		return 0, 0, 0, err
	}
	before, err := r.usage()
	if err != nil {
		return 0, 0, 0, err
	}
	start, n := time.Now(), b.bytes.Load()
	if err := pause(ctx, d); err != nil {
		return 0, 0, 0, err
	}
	if err := b.arrives(ctx, n); err != nil {
		return 0, 0, 0, err
	}
	took, n = time.Since(start), b.bytes.Load()-n
	after, err := r.usage()
	if err != nil {
		return 0, 0, 0, err
	}
	return n, took, after.cpu - before.cpu, b.fault()
}

// arrives waits until more bytes have arrived than before, and no longer than bulkPatience.
func (b *bulk) arrives(ctx context.Context, before int64) error {
	for deadline := time.Now().Add(bulkPatience); b.bytes.Load() == before; {
		if time.Now().After(deadline) {
			return errors.New("nothing arrives")
		}
		if err := errors.Join(b.fault(), pause(ctx, time.Millisecond)); err != nil {
			return err
		}
	}
	return nil
}

// fault is that of the first stream that ended by itself.
func (b *bulk) fault() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return fmt.Errorf("a stream ended: %w", b.err)
	}
	return nil
}

// stop ends the streams.
func (b *bulk) stop() {
	b.ended.Store(true)
	for _, c := range b.conns {
		_ = c.Close()
	}
	b.done.Wait()
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
