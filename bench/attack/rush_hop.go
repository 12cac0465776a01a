package attack

import (
	"errors"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// appPause is between two flows that an app asks a hostile hop for.
const appPause = 5 * time.Millisecond

// tally counts what a hop has done until the attack is over.
type tally struct {
	mu   sync.Mutex
	res  *Result
	over bool
}

func (t *tally) add(p *Peer, offences int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.over {
		t.res.add(p, offences)
	}
}

func (t *tally) stop() {
	t.mu.Lock()
	t.over = true
	t.mu.Unlock()
}

// Entry plays every attack of a hop on an entry, while an app asks for flows again and again.
func (r *Rush) Entry(e *Entry, each func(*Result)) error {
	r.echo = e.Exit.servers.echo
	nc, err := e.Innocent()
	if err != nil {
		return err
	}
	probe := probeConn(nc)
	defer probe.Stop()
	r.idle = 0
	refuse := HopAttack{Name: "nothing: flows that the hop refuses", Turn: func(p *Peer, id uint32) error {
		return errors.Join(p.Headers(id, true, ":status", "503"), p.Flush())
	}}
	for _, a := range append(append([]HopAttack{refuse}, HopAttacks()...), hopGames()...) {
		if a.Row != 0 && !r.plays(a.Name) {
			continue
		}
		res, err := r.measure(e.Gateway, probe, a.Row, a.Name, func(res *Result, end time.Time) error {
			t := &tally{res: res}
			e.Hop.Play(Script{Settings: a.Settings, Run: func(p *Peer) { t.add(p, a.rush(p, end)) }})
			e.apps(end)
			e.Hop.Play(Script{Run: func(p *Peer) { refuse.rush(p, time.Now().Add(time.Second)) }}) // and cuts what is left
			t.stop()
			return nil
		}, hopDials)
		if err != nil {
			return err
		}
		if a.Row == 0 {
			r.idle = res.Cores
		}
		each(res)
		if err := e.recover(); err != nil {
			return err
		}
	}
	return nil
}

// recover waits until the entry tries the hop again, so that one attack does not shield it from the next.
func (e *Entry) recover() error {
	e.Hop.Play(Script{Run: func(p *Peer) {
		for n := 1; ; n++ {
			id, ok := p.Request(n)
			if !ok || errors.Join(p.Headers(id, true, ":status", "200"), p.Flush()) != nil {
				return
			}
		}
	}})
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		nc, err := e.App(time.Second)
		if err == nil {
			return nc.Close()
		}
		if time.Now().After(end) {
			return err
		}
	}
}

// apps asks for flows until end.
func (e *Entry) apps(end time.Time) {
	var flows sync.WaitGroup
	for ; time.Now().Before(end); time.Sleep(appPause) {
		flows.Go(func() { // ends with the answer or after a second; waited for below
			if nc, err := e.App(time.Second); err == nil {
				_ = nc.Close()
			}
		})
	}
	flows.Wait()
}

// rush plays the attack on a connection until that ends, or until end: floods without end from the first
// request on, others once for each request.
func (a *HopAttack) rush(p *Peer, end time.Time) (n int) {
	for ; time.Now().Before(end); n++ {
		id, ok := p.Request(n + 1)
		if !ok {
			return n
		}
		var err error
		if a.Answer {
			err = p.Headers(id, false, ":status", "200")
		}
		if len(a.Codes) > 0 {
			return rush(func() error { return a.Turn(p, id) }, err, end)
		}
		if err = errors.Join(err, a.Turn(p, id), p.Flush()); err != nil {
			return n
		}
	}
	return n
}

// hopGames are ways to make an entry connect, wait or try again for nothing.
func hopGames() []HopAttack {
	return []HopAttack{
		{Row: 14, Name: "GOAWAY(0) for every request", Turn: func(p *Peer, _ uint32) error { return p.fr.WriteGoAway(0, http2.ErrCodeNo, nil) }},
		{Row: 14, Name: "the connection is cut for every request", Turn: func(p *Peer, _ uint32) error { return p.nc.Close() }},
		{Row: 14, Name: "every request is refused as not processed", Turn: func(p *Peer, id uint32) error {
			return p.fr.WriteRSTStream(id, http2.ErrCodeRefusedStream)
		}},
		{Row: 11, Name: "no streams are allowed", Settings: []http2.Setting{{ID: http2.SettingMaxConcurrentStreams, Val: 0}},
			Turn: func(*Peer, uint32) error { return nil }},
		{Row: 22, Name: "never an answer", Turn: func(*Peer, uint32) error { return nil }},
	}
}
