package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"culvert/bench/proc"
)

// bulkPatience is how long streams may carry nothing at all.
const bulkPatience = 20 * time.Second

// Way is what a number of streams do in one direction.
type Way struct {
	Name    string
	Streams int
	Up      bool // to the target, else from it
}

// ways are the four that AllWays measures, in this order.
var ways = []Way{
	{"down_1", 1, false}, {"up_1", 1, true}, {"down_8", 8, false}, {"up_8", 8, true},
}

// Carried is what a way carried, and what the processes between spent on it.
type Carried struct {
	Way   Way
	Bytes int64
	Took  time.Duration
	CPU   []time.Duration // of each process of the group, in its order
}

// PerSecond is the throughput, in bytes.
func (c *Carried) PerSecond() float64 { return float64(c.Bytes) / c.Took.Seconds() }

// Spent is the processor time of all processes together.
func (c *Carried) Spent() (sum time.Duration) {
	for _, d := range c.CPU {
		sum += d
	}
	return sum
}

// AllWays measures one and eight streams, down and up, each for d after warm, through the processes of g.
func AllWays(ctx context.Context, t *Target, entry string, g *proc.Group, warm, d time.Duration) ([]Carried, error) {
	var list []Carried
	for _, w := range ways {
		if err := t.Quiet(ctx); err != nil {
			return nil, err
		}
		b, err := Start(t, entry, w)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", w.Name, err)
		}
		c, err := b.Count(ctx, g, warm, d)
		b.Stop()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", w.Name, err)
		}
		list = append(list, c)
	}
	return list, nil
}

// Bulk is a number of streams that carry as much as they can.
type Bulk struct {
	way    Way
	conns  []*net.TCPConn
	bytes  *atomic.Int64 // that have arrived
	before int64         // what bytes was when the streams were opened
	done   sync.WaitGroup
	ended  atomic.Bool
	mu     sync.Mutex
	err    error // the first fault before Stop, guarded by mu
}

// Start opens streams that read from the target, or write to it.
func Start(t *Target, addr string, w Way) (*Bulk, error) {
	b := &Bulk{way: w, bytes: new(atomic.Int64)}
	ask := byte(AskSource)
	if w.Up {
		ask, b.bytes = AskSink, &t.received
		b.before = b.bytes.Load()
	}
	for range w.Streams {
		c, err := Dial(addr, 0)
		if err != nil {
			b.Stop()
			return nil, err
		}
		b.conns = append(b.conns, c)
		if _, err := c.Write([]byte{ask}); err != nil {
			b.Stop()
			return nil, err
		}
		// Either ends when Stop closes the connection; Stop waits.
		b.done.Go(func() {
			if w.Up {
				b.note(write(c, t.source))
			} else {
				b.note(b.read(c))
			}
		})
	}
	return b, nil
}

// read counts what arrives on c.
func (b *Bulk) read(c net.Conn) error {
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
func (b *Bulk) note(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.ended.Load() && b.err == nil {
		b.err = err
	}
}

// Count lets the streams run for warm after the first bytes have arrived, and then says what arrived within d, and what
// the processes of g spent meanwhile. If nothing arrives within d it waits for longer.
func (b *Bulk) Count(ctx context.Context, g *proc.Group, warm, d time.Duration) (Carried, error) {
	c := Carried{Way: b.way, CPU: make([]time.Duration, len(g.Processes))}
	if err := b.Arrives(ctx, b.before); err != nil {
		return c, err
	}
	if err := errors.Join(Pause(ctx, warm), c.spend(g, -1)); err != nil {
		return c, err
	}
	start, n := time.Now(), b.bytes.Load()
	if err := errors.Join(Pause(ctx, d), b.Arrives(ctx, n)); err != nil {
		return c, err
	}
	c.Took, c.Bytes = time.Since(start), b.bytes.Load()-n
	return c, errors.Join(c.spend(g, 1), b.Fault())
}

// spend adds, or takes away, what the processes have spent until now.
func (c *Carried) spend(g *proc.Group, sign time.Duration) error {
	for i, p := range g.Processes {
		u, err := p.Usage()
		if err != nil {
			return err
		}
		c.CPU[i] += sign * u.CPU
	}
	return nil
}

// Arrives waits until more bytes have arrived than before, and no longer than bulkPatience.
func (b *Bulk) Arrives(ctx context.Context, before int64) error {
	for deadline := time.Now().Add(bulkPatience); b.bytes.Load() == before; {
		if time.Now().After(deadline) {
			return errors.New("nothing arrives")
		}
		if err := errors.Join(b.Fault(), Pause(ctx, time.Millisecond)); err != nil {
			return err
		}
	}
	return nil
}

// Fault is that of the first stream that ended by itself.
func (b *Bulk) Fault() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return fmt.Errorf("a stream ended: %w", b.err)
	}
	return nil
}

// Stop ends the streams.
func (b *Bulk) Stop() {
	b.ended.Store(true)
	for _, c := range b.conns {
		_ = c.Close()
	}
	b.done.Wait()
}

// Pause waits for d or until ctx ends.
func Pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
