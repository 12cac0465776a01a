package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"culvert/capture"
	"culvert/policy"
	"culvert/tunnel/datagram"
)

const (
	// maxAddrs is how many addresses of a name are tried.
	maxAddrs = 8
	// attemptDelay is the head start of each address before the next one is tried beside it (RFC 8305,
	// section 5, "Connection Attempt Delay").
	attemptDelay = 250 * time.Millisecond
)

// openDirect connects to the destination itself. A name is resolved once, every answer is judged, and
// what was judged is dialled: nothing is resolved a second time.
func (g *Gateway) openDirect(ctx context.Context, f *Flow) (Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, f.plan.timeouts.Dial)
	defer cancel()
	t := f.Target
	if t.Socket != "" {
		return g.openSocketAt(ctx, t.Socket)
	}
	if s := f.service(); s != nil {
		return g.openService(ctx, f, s)
	}
	addrs := []netip.Addr{t.Addr}
	if t.IsName() {
		if d := f.mayReach(nil); !d.Allow {
			return nil, prohibited(d)
		}
		var err error
		asked := time.Now()
		addrs, err = g.resolve(ctx, t.Host)
		f.times.since(phaseDNS, asked)
		if err != nil {
			return nil, err
		}
		if err := f.authorizeAddrs(ctx, addrs); err != nil {
			return nil, err
		}
	}
	if !f.local {
		if d := f.mayReach(addrs); !d.Allow {
			return nil, prohibited(d)
		}
	}
	return g.dialDirect(ctx, f, addrs, t.Port)
}

// dialDirect connects to the first of addrs that answers, all of which the flow may reach.
func (g *Gateway) dialDirect(ctx context.Context, f *Flow, addrs []netip.Addr, port uint16) (Conn, error) {
	if f.via.inner != 0 {
		if f.UDP {
			return nil, &Error{Cause: CauseConfiguration, Reason: "datagrams are no inner tunnel, and the route that takes them has inner: pass"}
		}
		port = f.via.inner
	}
	for _, a := range addrs {
		if f.plan.own.listensOn(netip.AddrPortFrom(a, port)) {
			return nil, &Error{Cause: CauseLoop, Reason: fmt.Sprintf("this gateway itself listens on %s", netip.AddrPortFrom(a, port))}
		}
	}
	if f.via.source.IsValid() {
		if addrs = sameFamily(addrs, f.via.source); len(addrs) == 0 {
			return nil, &Error{Cause: CauseUnroutable, Reason: fmt.Sprintf("the destination has no address of the family of %s, the source of %s", f.via.source, f.via.name)}
		}
	}
	g.stats.dials.add(1)
	dial := g.env.Dial
	switch {
	case f.via.source.IsValid():
		dial = f.dialFrom
	case f.UDP:
		dial = g.env.DialUDP
	case f.via.keep:
		dial = f.dialAsSource
	}
	began := time.Now()
	nc, err := dialAny(ctx, dial, addrs, port)
	f.times.since(phaseDial, began)
	if err != nil {
		g.stats.dialFailures.add(1)
		var own *Error
		if reason := shortage(err); reason != "" && !errors.As(err, &own) {
			return nil, &Error{Cause: CauseOf(err), Reason: reason, Err: err}
		}
		return nil, fmt.Errorf("dial: %w", timedOut(ctx, err))
	}
	if f.plan.captures {
		if err := f.dialledHere(nc); err != nil {
			newSocket(nc).Reset(nil)
			return nil, err
		}
	}
	if f.UDP {
		return &packetEnd{datagram.New(nc, nil, g.longCapsules.For(f.fromAccepted()))}, nil
	}
	return newSocket(nc), nil
}

// openSocketAt connects to a unix socket of this host. The configuration has named it.
func (g *Gateway) openSocketAt(ctx context.Context, path string) (Conn, error) {
	g.stats.dials.add(1)
	nc, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		g.stats.dialFailures.add(1)
		return nil, fmt.Errorf("dial: %w", timedOut(ctx, err))
	}
	return newSocket(nc), nil
}

// dialAsSource connects with the address that the flow came from.
func (f *Flow) dialAsSource(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	source := f.Source.Addr()
	if told := forwardedFor(f.Request.Forwarded); told.IsGlobalUnicast() && !f.g.host.isHost(told) {
		source = told // what means something here
	}
	if !source.IsValid() || source.Is4() != addr.Addr().Is4() {
		return f.g.env.Dial(ctx, addr) // there is none that could be kept
	}
	d := net.Dialer{KeepAlive: -1, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0)), Control: asSource}
	nc, err := d.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return nil, fmt.Errorf("as %s: %w", source, err)
	}
	return nc, nil
}

// sameFamily returns those of addrs that are of the family of one.
func sameFamily(addrs []netip.Addr, one netip.Addr) (list []netip.Addr) {
	for _, a := range addrs {
		if a.Unmap().Is4() == one.Is4() {
			list = append(list, a)
		}
	}
	return list
}

// dialFrom connects from the address that the route names, which is this host's own.
func (f *Flow) dialFrom(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	from, mark := netip.AddrPortFrom(f.via.source, 0), f.g.ownMark()
	d := net.Dialer{KeepAlive: -1, LocalAddr: net.TCPAddrFromAddrPort(from), Control: func(network, address string, raw syscall.RawConn) error {
		portLater(raw)
		if mark != nil {
			return mark(network, address, raw)
		}
		return nil
	}}
	network := "tcp"
	if f.UDP {
		network, d.LocalAddr = "udp", net.UDPAddrFromAddrPort(from)
	}
	nc, err := d.DialContext(ctx, network, addr.String())
	var call *os.SyscallError
	switch {
	case errors.As(err, &call) && call.Syscall == "bind" && errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, &Error{Cause: CauseConfiguration, Reason: fmt.Sprintf("this host has no address %s, the source of %s; name one that it has (ip addr)", f.via.source, f.via.name), Err: err}
	case err != nil:
		return nil, fmt.Errorf("from %s: %w", f.via.source, err)
	}
	return nc, nil
}

// asSource is for net.Dialer.Control.
func asSource(_, _ string, raw syscall.RawConn) error {
	markOwn(raw, capture.MarkSource)
	return makeTransparent(raw)
}

// dialledHere notes a connection that this gateway has made, so that it is known if it comes back.
func (f *Flow) dialledHere(nc net.Conn) error {
	pair := addrPair{from: addrPort(nc.LocalAddr()), to: addrPort(nc.RemoteAddr()), udp: f.UDP}
	if f.g.loops.enter(pair, true) {
		return errCaughtAgain(pair)
	}
	f.entered = append(f.entered, pair)
	return nil
}

// errCaughtAgain is why a flow is refused that this gateway has sent on itself.
func errCaughtAgain(p addrPair) error {
	return &Error{Cause: CauseLoop, Reason: fmt.Sprintf("the connection from %s to %s is this gateway's own, and was captured again; "+
		"rules of the packet filter should leave alone what carries the mark %#x, and the gateway needs CAP_NET_ADMIN to set it", p.from, p.to, capture.MarkOwn)}
}

// mayReach asks the egress guard about the destination's name, or about all of its addresses. What the
// route names it also opens; besides that the gateway's own list counts.
func (f *Flow) mayReach(addrs []netip.Addr) policy.Decision {
	ask := func(e *policy.Egress) policy.Decision {
		if addrs == nil {
			return e.Name(f.Target.Host, f.Target.Port)
		}
		return e.Addrs(f.Target.Host, addrs, f.Target.Port)
	}
	d := ask(f.plan.guard)
	if d.Allow || f.via.guard == nil {
		return d
	}
	return ask(f.via.guard)
}

// authorizeAddrs asks policy about the addresses of a destination that is a name. It refuses all if it would refuse one,
// as the egress guard does, and the flow counts in the limits of all. Authorizers are asked then.
func (f *Flow) authorizeAddrs(ctx context.Context, addrs []netip.Addr) error {
	var r policy.Request
	f.ask(&r, f.plan)
	f.show().addrs, r.Self = addrs, f.self
	f.Request.due, f.Request.asks, f.shown.headers = nil, nil, nil // what is due is due for the addresses
	for _, r.Addr = range addrs {
		r.Workload = f.plan.workloadOf(Target{Addr: r.Addr})
		d := f.plan.decide(&r)
		f.g.report(f, &d)
		if !d.Allow {
			f.asked = askedDeny
			return denied(&d)
		}
		f.note(&r, &d)
		f.toAsk(&r, &d)
	}
	if q := f.Request.asks; q != nil && len(addrs) > 1 {
		q.about.Addr = netip.Addr{} // which of them will be dialled is not known: it is about the name
	}
	if err := f.g.oblige(f); err != nil {
		return err
	}
	return f.g.askNow(ctx, f)
}

func prohibited(d policy.Decision) error {
	return &Error{Cause: CauseProhibited, Policy: d.Policy, Rule: d.Rule, Reason: d.Reason}
}

// resolve returns the addresses of host, IPv4-mapped forms unmapped. No answer is an error.
func (g *Gateway) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	addrs, err := g.env.Resolve(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("resolve: %w", timedOut(ctx, err))
	}
	if len(addrs) == 0 {
		return nil, &Error{Cause: CauseDNS, Reason: "the name has no address"}
	}
	list := make([]netip.Addr, 0, len(addrs)) // what came may be shared
	for _, a := range addrs {
		list = append(list, a.Unmap())
	}
	return list, nil
}

// dialFunc connects to an address, and to nothing else. It ends with ctx.
type dialFunc func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)

// dialAny connects to the first of addrs that answers. One address is dialled in this goroutine; of several,
// the families take turns (RFC 8305, section 4), each gets a head start, and the first connection wins.
// The error is that of the address that was tried first.
func dialAny(ctx context.Context, dial dialFunc, addrs []netip.Addr, port uint16) (net.Conn, error) {
	switch len(addrs) {
	case 0:
		return nil, errors.New("no address to dial")
	case 1:
		return dial(ctx, netip.AddrPortFrom(addrs[0].Unmap(), port))
	}
	addrs = interleave(addrs)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		i   int
		nc  net.Conn
		err error
	}
	results := make(chan result, len(addrs))
	errs := make([]error, len(addrs))
	started, ended := 0, 0
	start := func() {
		i := started
		started++
		go func() { // ends with its dial, which ends with ctx; every result is taken below
			nc, err := dial(ctx, netip.AddrPortFrom(addrs[i], port))
			results <- result{i, nc, err}
		}()
	}
	var won net.Conn
	timer := time.NewTimer(attemptDelay)
	defer timer.Stop()
	for start(); ended < started; {
		select {
		case r := <-results:
			ended++
			errs[r.i] = r.err
			switch {
			case r.err == nil && won == nil:
				won = r.nc
				cancel() // the others end, and are taken
			case r.err == nil:
				_ = r.nc.Close() // two were equally fast
			case won == nil && started < len(addrs):
				start()
				timer.Reset(attemptDelay)
			}
		case <-timer.C:
			if won == nil && started < len(addrs) {
				start()
				timer.Reset(attemptDelay)
			}
		}
	}
	if won != nil {
		return won, nil
	}
	return nil, errs[0]
}

// interleave orders addresses so that the families take turns, that of the first address first (RFC 8305, section 4):
// whoever resolved the name knows which family this host can use (RFC 6724). It keeps at most maxAddrs.
func interleave(addrs []netip.Addr) []netip.Addr {
	var first, second, list []netip.Addr
	for _, a := range addrs {
		if a = a.Unmap(); a.Is4() == addrs[0].Unmap().Is4() {
			first = append(first, a)
		} else {
			second = append(second, a)
		}
	}
	for len(list) < maxAddrs && len(first)+len(second) > 0 {
		for _, family := range []*[]netip.Addr{&first, &second} {
			if len(*family) > 0 {
				list = append(list, (*family)[0])
				*family = (*family)[1:]
			}
		}
	}
	return list
}
