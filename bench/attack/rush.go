package attack

import (
	"net"
	"regexp"
	"time"

	"golang.org/x/net/http2"
)

// Result is what an attack at full speed has come to.
type Result struct {
	Row      int
	Name     string
	Conns    int                   // connections that the offender has used
	Offences int                   // written, those that nobody read included
	Ends     map[http2.ErrCode]int // how they ended, by the last GOAWAY
	Open     int                   // connections that were not ended
	Resets   int                   // RST_STREAM frames that came
	Dials    float64               // connections that the gateway made: to destinations, or to the hop
	Seconds  float64
	Cores    float64 // of the gateway, beyond what the probe costs
	Grown    float64 // resident memory at its most, beyond that before, bytes
	Left     float64 // descriptors held when the offender is gone
	Probe    Rounds  // on another connection
	Direct   Rounds  // of the same probe without a gateway: what the machine adds
	Beside   *Rounds // on a connection of the offender; nil: there was none
}

// add counts what came of a connection.
func (r *Result) add(p *Peer, offences int) {
	s := p.Look()
	r.Conns++
	r.Offences += offences
	r.Resets += s.Resets
	if s.Ended || s.last() != http2.ErrCodeNo {
		r.Ends[s.last()]++
	} else {
		r.Open++
	}
}

// Rush measures gateways while they are attacked.
type Rush struct {
	For  time.Duration  // each attack
	Only *regexp.Regexp // names of the attacks to play; nil: all
	idle float64        // cores that the probe alone costs
	echo string         // where both probes lead
}

// plays reports whether the attack of that name is to be played.
func (r *Rush) plays(name string) bool { return r.Only == nil || r.Only.MatchString(name) }

// Exit plays every attack on an exit.
func (r *Rush) Exit(e *Exit, each func(*Result)) error {
	r.echo = e.servers.echo
	probe, err := e.probe()
	if err != nil {
		return err
	}
	defer probe.Stop()
	r.idle = 0
	none, err := r.measure(e.Gateway, probe, 0, "nothing but the probe", func(*Result, time.Time) error {
		time.Sleep(r.For)
		return nil
	}, exitDials)
	if err != nil {
		return err
	}
	each(none)
	r.idle = none.Cores
	for _, a := range append(Attacks(), mixedHeads()) {
		if !r.plays(a.Name) {
			continue
		}
		res, err := r.measure(e.Gateway, probe, a.Row, a.Name, func(res *Result, end time.Time) error {
			for time.Now().Before(end) {
				if err := e.once(&a, res, end); err != nil {
					return err
				}
			}
			return nil
		}, exitDials)
		if err != nil {
			return err
		}
		each(res)
	}
	return nil
}

func exitDials(f Figures) float64 { return f.Dials }
func hopDials(f Figures) float64  { return f.HopDials }

func (e *Exit) probe() (*Probe, error) {
	nc, err := e.Innocent()
	if err != nil {
		return nil, err
	}
	return probeConn(nc), nil
}

// mixedHeads sends every malformed request in turn.
func mixedHeads() Attack {
	var heads []Head
	for _, h := range Heads() {
		if h.Then == nil {
			heads = append(heads, h)
		}
	}
	n := 0
	return Attack{Row: 18, Name: "every malformed request in turn", Turn: func(p *Peer) error {
		h := &heads[n%len(heads)]
		n++
		p.Next += 2
		return p.Headers(p.Next, h.End, h.Fields...)
	}}
}

// once plays an attack on one connection until the gateway ends it, or until end.
func (e *Exit) once(a *Attack, res *Result, end time.Time) error {
	p, err := e.For(a)
	if err != nil {
		return err
	}
	defer p.Close()
	if a.Begin != nil {
		err = a.Begin(p)
	}
	n := rush(func() error { return a.Turn(p) }, err, end)
	if n < 64 && p.Flush() == nil { // else it may be blocked until the gateway closes
		p.Wait(time.Until(end), func(s *Seen) bool { return s.Ended })
	}
	res.add(p, n)
	return nil
}

// rush offends until that fails or the time is over, and returns how often.
func rush(turn func() error, err error, end time.Time) (n int) {
	for ; err == nil && (n%64 != 0 || time.Now().Before(end)); n++ {
		err = turn()
	}
	return n
}

// measure runs play and puts what the gateway shows beside it.
func (r *Rush) measure(g *Gateway, probe *Probe, row int, name string, play func(*Result, time.Time) error, dials func(Figures) float64) (*Result, error) {
	res := &Result{Row: row, Name: name, Ends: map[http2.ErrCode]int{}}
	before, err := g.Figures()
	if err != nil {
		return nil, err
	}
	nc, err := net.Dial("tcp", r.echo)
	if err != nil {
		return nil, err
	}
	direct := probeConn(nc)
	defer direct.Stop()
	probe.Take()
	start := time.Now()
	stop, most := watchRSS(g)
	err = play(res, start.Add(r.For))
	stop()
	res.Probe, res.Direct = probe.Take(), direct.Take()
	res.Seconds = time.Since(start).Seconds()
	if err != nil {
		return nil, err
	}
	after, err := g.Figures()
	if err != nil {
		return nil, err
	}
	res.Cores = max(0, (after.CPU-before.CPU)/res.Seconds-r.idle)
	res.Grown = max(0, most()-before.RSS)
	res.Dials = dials(after) - dials(before)
	res.Left, err = g.left(before)
	return res, err
}

// left waits until the gateway has given descriptors back and returns how many it has not.
func (g *Gateway) left(before Figures) (float64, error) {
	for end := time.Now().Add(3 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		now, err := g.Figures()
		if err != nil || now.Files <= before.Files && now.Active <= before.Active || time.Now().After(end) {
			return max(0, now.Files-before.Files), err
		}
	}
}

// watchRSS follows the resident memory until stop is called; then most is its maximum.
func watchRSS(g *Gateway) (stop func(), most func() float64) {
	var greatest float64
	done, ended := make(chan struct{}), make(chan struct{})
	go func() { // ends with stop, which waits for it
		defer close(ended)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				if f, err := g.Figures(); err == nil { // one that was missed is made up for by the next
					greatest = max(greatest, f.RSS)
				}
			}
		}
	}()
	return func() { close(done); <-ended }, func() float64 { return greatest }
}

// hold plays what keeps tunnels open, beside a probe on another connection. The result is nil where the name is
// not to be played.
func (r *Rush) hold(e *Exit, name string, play func(*Result, time.Time) error) (*Result, error) {
	if !r.plays(name) {
		return nil, nil
	}
	r.echo = e.servers.echo
	probe, err := e.probe()
	if err != nil {
		return nil, err
	}
	defer probe.Stop()
	return r.measure(e.Gateway, probe, 9, name, play, exitDials)
}

// Stalled holds tunnels that nobody reads, beside a probe on another connection and one on theirs. The result
// is nil where the name is not to be played.
func (r *Rush) Stalled(e *Exit, name string, tunnels int) (*Result, error) {
	return r.hold(e, name, func(res *Result, end time.Time) error {
		peers, err := e.Stalled(tunnels)
		if err == nil {
			p := peers[len(peers)-1]
			beside := startProbe(func() error { return p.Echo(1, stalledEcho) }, func() {})
			time.Sleep(time.Until(end))
			beside.Stop()
			rounds := beside.Take()
			res.Beside = &rounds
		}
		for _, p := range peers {
			res.add(p, stalledPerConn)
			p.Close()
		}
		return err
	})
}

// stalledEcho is what a probe on the offender's connection sends.
const stalledEcho = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// ZeroWindow holds tunnels to a source without end that get no window. The result is nil where it is not to be
// played.
func (r *Rush) ZeroWindow(e *Exit) (*Result, error) {
	return r.hold(e, "200 tunnels without window", func(res *Result, end time.Time) error {
		p, err := e.ZeroWindow()
		if p != nil {
			time.Sleep(time.Until(end))
			res.add(p, maxStreams)
			p.Close()
		}
		return err
	})
}
