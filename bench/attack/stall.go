package attack

import (
	"errors"
	"fmt"

	"golang.org/x/net/http2"
)

// stalledPerConn is how many tunnels of a connection stall; one is left for an innocent.
const stalledPerConn = maxStreams - 1

// stalledBytes is what a tunnel that nobody reads takes: its first window.
const stalledBytes = 64 << 10

// Stalled opens connections whose tunnels fill the gateway's buffers and are never read from: they lead to an
// address that does not answer, so that nothing below the gateway takes their bytes. Each connection carries
// an innocent tunnel to the echo as well, on stream 1, which was there before.
func (e *Exit) Stalled(tunnels int) (peers []*Peer, err error) {
	for range (tunnels + stalledPerConn - 1) / stalledPerConn {
		p, err := e.Peer(e.servers.echo)
		if err != nil {
			return peers, err
		}
		peers = append(peers, p)
		if _, err := p.Tunnel(); err != nil {
			return peers, err
		}
	}
	for _, p := range peers {
		if err := e.fill(p, min(tunnels, stalledPerConn)); err != nil {
			return peers, err
		}
		tunnels -= stalledPerConn
	}
	return peers, nil
}

// fill opens n tunnels that hang and sends each a window full. The first frames go out in turn, as those of
// many uploads do.
func (e *Exit) fill(p *Peer, n int) error {
	p.target = e.servers.hangs
	first := p.Next
	var errs []error
	for range n {
		_, err := p.Connect()
		errs = append(errs, err)
	}
	errs = append(errs, p.Flush())
	const frame = 16 << 10
	for range stalledBytes / frame {
		for id := first; id < p.Next; id += 2 {
			if p.resetNow(id) {
				continue
			}
			errs = append(errs, p.fr.WriteData(id, false, make([]byte, frame)))
		}
	}
	return errors.Join(append(errs, p.Flush())...)
}

func (p *Peer) resetNow(id uint32) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen.reset(id)
}

// resetWith counts the streams that were reset with a code.
func (p *Peer) resetWith(code http2.ErrCode) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.seen.ResetBy {
		if c == code {
			n++
		}
	}
	return n
}

// ZeroWindow opens as many tunnels as a connection may have to a source that sends without end, and gives
// none of them a window.
func (e *Exit) ZeroWindow() (*Peer, error) {
	p, err := e.Peer(e.servers.source, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	if err != nil {
		return nil, err
	}
	for range maxStreams {
		if _, err = p.Tunnel(); err != nil {
			return p, fmt.Errorf("tunnel without window: %w", err)
		}
	}
	return p, nil
}
