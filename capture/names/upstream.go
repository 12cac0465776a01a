package names

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxWrong is how many answers to something else are passed over in one socket. More are no late ones, but somebody
	// who guesses; that is harder over TCP (RFC 5452, section 9.3).
	maxWrong = 100
	// maxDatagram is what is read of a datagram. Resolvers that send more than they were offered are asked by TCP.
	maxDatagram = 4 << 10
)

// refusedCode is an answer that is not passed on.
type refusedCode int

func (c refusedCode) Error() string { return dns.RcodeToString[int(c)] }

// servers are the resolvers for a name.
func (s *Server) servers(name string, asked netip.AddrPort) []string {
	for _, z := range s.c.zones {
		if within(name, z.name) {
			return z.upstream
		}
	}
	switch {
	case len(s.c.upstream) > 0:
		return s.c.upstream
	case asked.IsValid():
		return []string{netip.AddrPortFrom(asked.Addr().Unmap(), asked.Port()).String()}
	case s.system != nil:
		return s.system()
	}
	return nil
}

// resolve asks the cache, and then the resolvers for the name. The answer is a copy.
func (s *Server) resolve(ctx context.Context, q *dns.Msg, name string, asked netip.AddrPort) (m *dns.Msg, cached bool, err error) {
	servers := s.servers(name, asked)
	if len(servers) == 0 {
		return nil, false, errors.New("there is no resolver")
	}
	key := cacheKey{name: name, kind: q.Question[0].Qtype, upstream: strings.Join(servers, " "), secure: secure(q), unchecked: q.CheckingDisabled}
	if m = s.cache.get(key); m == nil {
		if m, err = s.fly(ctx, q, key, servers); err != nil {
			return nil, false, err
		}
	} else {
		cached = true
	}
	m.Question = q.Question // in the letters that the app has written
	for _, rr := range m.Answer {
		if h := rr.Header(); canonical(h.Name) == name {
			h.Name = q.Question[0].Name // as some compare them
		}
	}
	m.RecursionDesired, m.CheckingDisabled = q.RecursionDesired, q.CheckingDisabled
	return m, cached, nil
}

// secure reports whether a question is about signatures, too.
func secure(q *dns.Msg) bool {
	opt := q.IsEdns0()
	return opt != nil && opt.Do()
}

// fly asks the resolvers. Those who ask the same meanwhile wait for one answer, of which each gets a copy.
func (s *Server) fly(ctx context.Context, q *dns.Msg, key cacheKey, servers []string) (*dns.Msg, error) {
	for {
		v, err, _ := s.flights.Do(key.String(), func() (any, error) {
			m, err := s.ask(ctx, q, servers)
			if err == nil {
				err = s.check(key.name, m)
			}
			if err == nil {
				s.cache.put(key, m)
			}
			return m, err
		})
		switch {
		case err == nil:
			return v.(*dns.Msg).Copy(), nil
		case errors.Is(err, context.Canceled) && ctx.Err() == nil:
			continue // whoever asked for all of us has gone
		}
		return nil, err
	}
}

// ask asks resolvers for an app.
func (s *Server) ask(ctx context.Context, q *dns.Msg, servers []string) (*dns.Msg, error) {
	c := client{dial: s.dial, timeout: s.c.timeout, dropped: &s.stats.Dropped}
	return c.ask(ctx, q, servers)
}

// client asks resolvers. It does not change.
type client struct {
	dial    Dial
	timeout time.Duration // of one resolver
	dropped *atomic.Int64 // counts messages that are no answers to what was asked
}

// ask asks resolvers, one after the other, until one answers.
func (c *client) ask(ctx context.Context, q *dns.Msg, servers []string) (*dns.Msg, error) {
	var errs []error
	for i, server := range servers {
		m, err := c.askOne(ctx, q, server, len(servers)-i)
		if err == nil {
			return m, nil
		}
		errs = append(errs, fmt.Errorf("ask %s: %w", server, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// askOne asks one resolver, which gets its share of the time if it is one of several that are left.
func (c *client) askOne(ctx context.Context, q *dns.Msg, server string, left int) (*dns.Msg, error) {
	share := c.timeout
	if deadline, ok := ctx.Deadline(); ok {
		share = min(share, time.Until(deadline)/time.Duration(left))
	}
	ctx, cancel := context.WithTimeout(ctx, share)
	defer cancel()
	ask := new(dns.Msg)
	ask.RecursionDesired, ask.CheckingDisabled = true, q.CheckingDisabled
	ask.Question = []dns.Question{{Name: canonical(q.Question[0].Name), Qtype: q.Question[0].Qtype, Qclass: dns.ClassINET}}
	ask.SetEdns0(udpSize, secure(q))
	m, err := c.exchange(ctx, ask, server, "udp")
	if err == nil && m.IsEdns0() == nil && (m.Rcode == dns.RcodeFormatError || m.Rcode == dns.RcodeNotImplemented) {
		ask.Extra = nil // it may not know of EDNS (RFC 6891, section 6.2.2)
		m, err = c.exchange(ctx, ask, server, "udp")
	}
	if err == nil && m.Truncated {
		m, err = c.exchange(ctx, ask, server, "tcp")
	}
	switch {
	case err != nil:
		return nil, err
	case m.Truncated:
		return nil, errors.New("the answer is cut off, over TCP as well")
	case m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError:
		return nil, fmt.Errorf("it answers %s", dns.RcodeToString[m.Rcode])
	case isReferral(m):
		return nil, errors.New("it does not answer for others, but knows whom to ask; that is no resolver")
	}
	m = believed(ask, m)
	if err := sound(m); err != nil {
		return nil, fmt.Errorf("pass its answer on: %w", err)
	}
	return m, nil
}

// sound checks that m can be read once more after it was written. The library reads records that end early, and writes
// what is missing as nothing: the app would then read what follows in its place.
func sound(m *dns.Msg) error {
	m.Compress = true
	b, err := m.Pack()
	if err == nil {
		_, err = unpack(b)
	}
	return err
}

// isReferral reports whether m says only who else may know.
func isReferral(m *dns.Msg) bool {
	if m.Rcode != dns.RcodeSuccess || m.RecursionAvailable || m.Authoritative || len(m.Answer) > 0 {
		return false
	}
	for _, rr := range m.Ns {
		if rr.Header().Rrtype == dns.TypeSOA {
			return false
		}
	}
	return true
}

// exchange asks once. What is no answer to the question is passed over, until the time is up. A datagram that does not
// hold the whole answer is Truncated, whatever it says.
func (c *client) exchange(ctx context.Context, ask *dns.Msg, server, network string) (*dns.Msg, error) {
	ask.Id = dns.Id()
	text, err := ask.Pack()
	if err != nil {
		return nil, err
	}
	nc, err := c.dial(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	defer unblock(ctx, nc)()
	tcp := network == "tcp"
	conn := &dns.Conn{Conn: nc}
	if tcp {
		_, err = conn.Write(text)
	} else {
		_, err = nc.Write(text)
	}
	buf := make([]byte, maxDatagram)
	for wrong := 0; err == nil; wrong++ {
		if wrong == maxWrong {
			return &dns.Msg{MsgHdr: dns.MsgHdr{Truncated: true}}, nil
		}
		b := buf
		if tcp {
			b, err = conn.ReadMsgHeader(nil)
		} else {
			var n int
			n, err = nc.Read(buf)
			b = buf[:n]
		}
		if err != nil {
			break
		}
		m, bad := unpack(b)
		if !isAnswer(ask, m) {
			c.dropped.Add(1)
			continue
		}
		if bad != nil && tcp {
			return nil, fmt.Errorf("read its answer: %w", bad)
		}
		m.Truncated = m.Truncated || bad != nil
		return m, nil
	}
	if ctx.Err() != nil {
		err = ctx.Err() // and not that the deadline was set to the past
	}
	return nil, err
}

// errCounts is of a message with fewer records than its head says.
var errCounts = errors.New("the message ends early")

// unpack reads a message. Where it fails it returns as much as it has read, at least an empty message. The library takes
// one that ends between two records for whole.
func unpack(b []byte) (*dns.Msg, error) {
	m := new(dns.Msg)
	if err := m.Unpack(b); err != nil {
		return m, err
	}
	for i, n := range []int{len(m.Question), len(m.Answer), len(m.Ns), len(m.Extra)} {
		if int(binary.BigEndian.Uint16(b[4+2*i:])) != n { // RFC 1035, section 4.1.1
			return m, errCounts
		}
	}
	return m, nil
}

// isAnswer reports whether m answers what was asked. Failures may come without the question, which some resolvers have
// not read then.
func isAnswer(ask, m *dns.Msg) bool {
	if !m.Response || m.Id != ask.Id || m.Opcode != dns.OpcodeQuery {
		return false
	}
	if len(m.Question) == 0 {
		return m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError
	}
	q, a := ask.Question[0], m.Question[0]
	return len(m.Question) == 1 && canonical(a.Name) == q.Name && a.Qtype == q.Qtype && a.Qclass == q.Qclass
}

// SystemResolvers are the resolvers of this host, as resolv.conf(5) names them.
func SystemResolvers() (list []string) {
	c, err := dns.ClientConfigFromFile("/etc/resolv.conf")
	if err != nil {
		return nil
	}
	for _, server := range c.Servers {
		list = append(list, net.JoinHostPort(server, c.Port))
	}
	return list
}
