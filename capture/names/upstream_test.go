package names

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

const (
	wwwRecord = "www.example. 60 IN A 192.0.2.1"
	wwwFound  = "NOERROR | " + wwwRecord
)

func TestTruncatedAnswerIsAskedByTCP(t *testing.T) {
	r := newResolver(t, func(network string, q *dns.Msg) []*dns.Msg {
		m := replyTo(q, wwwRecord)
		if network == "udp" {
			m.Answer, m.Truncated = nil, true
		}
		return []*dns.Msg{m}
	})
	s := newServer(t, &Config{Upstream: []string{r.addr}}, dialLoopback)
	wantShown(t, asks(t, s, question("www.example.", dns.TypeA)), wwwFound)
	if all, tcp := r.asked.Load(), r.tcp.Load(); all != 2 || tcp != 1 {
		t.Errorf("the resolver was asked %d times, %d by TCP, want 2 and 1", all, tcp)
	}
}

func TestOversizedDatagramIsAskedByTCP(t *testing.T) {
	r := newResolver(t, long(1000))
	s := newServer(t, &Config{Upstream: []string{r.addr}}, dialLoopback)
	q := question("many.example.", dns.TypeA)
	got := answerTo(t, q, s.answer(t.Context(), packed(t, q), nobody, dns.MaxMsgSize))
	if len(got.Answer) != 1000 || r.tcp.Load() != 1 {
		t.Errorf("%d records, asked %d times by TCP, want 1000 and 1", len(got.Answer), r.tcp.Load())
	}
}

func TestNextResolverIsAsked(t *testing.T) {
	cut := func(_ string, q *dns.Msg) []*dns.Msg {
		m := replyTo(q)
		m.Truncated = true
		return []*dns.Msg{m}
	}
	referral := func(_ string, q *dns.Msg) []*dns.Msg {
		m := replyTo(q)
		m.RecursionAvailable, m.Ns = false, parse("example. 60 IN NS ns.example.")
		return []*dns.Msg{m}
	}
	unread := func(_ string, q *dns.Msg) []*dns.Msg {
		m := failure(q, dns.RcodeRefused)
		m.Question = nil
		return []*dns.Msg{m}
	}
	for name, first := range map[string]script{
		"SERVFAIL": says(dns.RcodeServerFailure), "REFUSED": says(dns.RcodeRefused), "FORMERR": says(dns.RcodeFormatError),
		"NOTAUTH": says(dns.RcodeNotAuth), "cut off over TCP": cut, "referral": referral, "no question": unread,
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemory(t, first, fixed(wwwRecord))
			s := newServer(t, &Config{Upstream: append([]string{"nothing.example:53"}, m.addrs()...)}, m.dial)
			wantShown(t, asks(t, s, question("www.example.", dns.TypeA)), wwwFound)
			wantCounts(t, s, "questions=1")
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		pc, ln := samePort(t)
		r := newResolver(t, fixed(wwwRecord))
		s := newServer(t, &Config{Upstream: []string{pc.LocalAddr().String(), r.addr}}, dialLoopback)
		pc.Close()
		ln.Close()
		wantShown(t, asks(t, s, question("www.example.", dns.TypeA)), wwwFound)
	})
	t.Run("all fail", func(t *testing.T) {
		m := newMemory(t, says(dns.RcodeServerFailure), says(dns.RcodeRefused))
		s := newServer(t, &Config{Upstream: m.addrs()}, m.dial)
		wantShown(t, asks(t, s, question("www.example.", dns.TypeA)), "SERVFAIL")
		wantCounts(t, s, "questions=1 failed=1")
	})
}

func TestResolverWithoutEDNS(t *testing.T) {
	m := newMemory(t, func(_ string, q *dns.Msg) []*dns.Msg {
		if q.IsEdns0() != nil {
			return says(dns.RcodeFormatError)("", q)
		}
		return fixed(wwwRecord)("", q)
	})
	s := newServer(t, &Config{Upstream: m.addrs()}, m.dial)
	wantShown(t, asks(t, s, question("www.example.", dns.TypeA)), wwwFound)
}

// TestSilentResolvers has an app get its answer before it gives up, which is after 5 s, whatever the resolvers do.
func TestSilentResolvers(t *testing.T) {
	wrong := func(_ string, q *dns.Msg) []*dns.Msg {
		m := replyTo(q, wwwRecord)
		m.Id++
		return []*dns.Msg{m}
	}
	half := func(network string, q *dns.Msg) []*dns.Msg { // by TCP it is silent
		if network == "tcp" {
			return nil
		}
		m := replyTo(q)
		m.Truncated = true
		return []*dns.Msg{m}
	}
	for name, c := range map[string]struct {
		resolvers []script
		timeout   time.Duration
		want      string
		took      time.Duration
	}{
		"one":                   {[]script{silent}, 0, "SERVFAIL", 3 * time.Second},
		"one, short":            {[]script{silent}, time.Second, "SERVFAIL", time.Second},
		"one, long":             {[]script{silent}, 20 * time.Second, "SERVFAIL", 20 * time.Second},
		"two":                   {[]script{silent, silent}, 0, "SERVFAIL", 4 * time.Second},
		"five":                  {[]script{silent, silent, silent, silent, silent}, 0, "SERVFAIL", 4 * time.Second},
		"the last answers":      {[]script{silent, silent, silent, fixed(wwwRecord)}, 0, wwwFound, 3 * time.Second},
		"the second answers":    {[]script{silent, fixed(wwwRecord)}, 0, wwwFound, 2 * time.Second},
		"only wrong answers":    {[]script{wrong}, 0, "SERVFAIL", 3 * time.Second},
		"silent by TCP":         {[]script{half}, 0, "SERVFAIL", 3 * time.Second},
		"silent by TCP, then a": {[]script{half, fixed(wwwRecord)}, 0, wwwFound, 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory(t, c.resolvers...)
				s := newServer(t, &Config{Upstream: m.addrs(), Timeout: c.timeout, Search: []string{"a.example", "b.example"}}, m.dial)
				start := time.Now()
				wantShown(t, asks(t, s, question("www.example.", dns.TypeA)), c.want)
				if took := time.Since(start); took != c.took {
					t.Errorf("it took %v, want %v", took, c.took)
				}
			})
		})
	}
}

// TestSearchIsBounded has every domain take its time.
func TestSearchIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(t, func(_ string, q *dns.Msg) []*dns.Msg {
			if q.Question[0].Name == "db." {
				return says(dns.RcodeNameError)("", q)
			}
			return nil
		})
		s := newServer(t, &Config{Upstream: m.addrs(), Search: []string{"a.example", "b.example", "c.example"}}, m.dial)
		start := time.Now()
		wantShown(t, asks(t, s, question("db.", dns.TypeA)), "NXDOMAIN")
		if took := time.Since(start); took != questionTime {
			t.Errorf("it took %v, want %v", took, questionTime)
		}
	})
}

func TestWrongAnswersArePassedOver(t *testing.T) {
	change := func(f func(*dns.Msg)) func(*dns.Msg) *dns.Msg {
		return func(q *dns.Msg) *dns.Msg {
			m := replyTo(q, "www.example. 60 IN A 192.0.2.66")
			f(m)
			return m
		}
	}
	for name, wrong := range map[string]func(*dns.Msg) *dns.Msg{
		"ID":            change(func(m *dns.Msg) { m.Id++ }),
		"name":          change(func(m *dns.Msg) { m.Question[0].Name = "ww.example." }),
		"type":          change(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA }),
		"class":         change(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }),
		"two questions": change(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }),
		"no question":   change(func(m *dns.Msg) { m.Question = nil }),
		"a question":    change(func(m *dns.Msg) { m.Response = false }),
		"opcode":        change(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }),
	} {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(name+" "+network, func(t *testing.T) {
				m := newMemory(t, func(on string, q *dns.Msg) []*dns.Msg {
					good := replyTo(q, wwwRecord)
					if on != network {
						good.Truncated = true
						return []*dns.Msg{good}
					}
					return []*dns.Msg{wrong(q), wrong(q), good}
				})
				s := newServer(t, &Config{Upstream: m.addrs()}, m.dial)
				wantShown(t, asks(t, s, question("www.example.", dns.TypeA)), wwwFound)
				wantCounts(t, s, "questions=1 dropped=2")
			})
		}
	}
}

// TestLateAnswerIsPassedOver has a resolver that answers late, when the same question is being asked again.
func TestLateAnswerIsPassedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := make(chan *dns.Msg, 1)
		m := newMemory(t, func(_ string, q *dns.Msg) []*dns.Msg {
			select {
			case late := <-first:
				late.Id = q.Id ^ 1 // it may have been the same by chance
				return []*dns.Msg{late, replyTo(q, wwwRecord)}
			default:
				first <- replyTo(q, "www.example. 60 IN A 192.0.2.66")
				return nil
			}
		})
		s := newServer(t, &Config{Upstream: m.addrs()}, m.dial)
		wantShown(t, asks(t, s, question("www.example.", dns.TypeA)), "SERVFAIL")
		wantShown(t, asks(t, s, question("www.example.", dns.TypeA)), wwwFound)
		wantCounts(t, s, "questions=2 failed=1 dropped=1")
	})
}

// TestGuessedAnswersLeadToTCP floods with answers that could be right by chance.
func TestGuessedAnswersLeadToTCP(t *testing.T) {
	m := newMemory(t, func(network string, q *dns.Msg) (list []*dns.Msg) {
		if network == "udp" {
			for i := range uint16(maxWrong) {
				guess := replyTo(q, "www.example. 60 IN A 192.0.2.66")
				guess.Id += i + 1
				list = append(list, guess)
			}
			return append(list, replyTo(q, "www.example. 60 IN A 192.0.2.66"))
		}
		return []*dns.Msg{replyTo(q, wwwRecord)}
	})
	s := newServer(t, &Config{Upstream: m.addrs()}, m.dial)
	wantShown(t, asks(t, s, question("www.example.", dns.TypeA)), wwwFound)
	wantCounts(t, s, "questions=1 dropped=100")
}

// TestCutOffAnswers sends what ends early: in a record, and between two, which the library takes for whole.
func TestCutOffAnswers(t *testing.T) {
	q := question("www.example.", dns.TypeA)
	m := replyTo(q, wwwRecord, "www.example. 60 IN A 192.0.2.2")
	whole := packed(t, m)
	for _, cut := range []int{1, 3, len(packed(t, replyTo(q, wwwRecord))) - len(packed(t, replyTo(q)))} {
		if got, err := unpack(whole[:len(whole)-cut]); err == nil || !isAnswer(q, got) {
			t.Errorf("unpack without the last %d bytes = %v, %v, want the question and an error", cut, got, err)
		}
	}
	if _, err := unpack(whole); err != nil {
		t.Errorf("unpack = %v, want nil", err)
	}
}

// TestRecordThatEndsEarly has a SOA without its second name, which would shift all that follows it.
func TestRecordThatEndsEarly(t *testing.T) {
	short := func(_ string, q *dns.Msg) []*dns.Msg {
		m := failure(q, dns.RcodeNameError)
		head := dns.RR_Header{Name: "example.", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 60}
		m.Ns = []dns.RR{&dns.RFC3597{Hdr: head, Rdata: "026e7300"}}
		return []*dns.Msg{m}
	}
	m := newMemory(t, short, fixed(wwwRecord))
	s := newServer(t, &Config{Upstream: m.addrs()}, m.dial)
	wantShown(t, asks(t, s, question("www.example.", dns.TypeA)), wwwFound)
}

// TestOneFlightForAll has many ask the same at once.
func TestOneFlightForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(t, func(_ string, q *dns.Msg) []*dns.Msg {
			time.Sleep(time.Second) // of synthetic time: it is a slow one
			return []*dns.Msg{replyTo(q, wwwRecord)}
		})
		s := newServer(t, &Config{Upstream: m.addrs()}, m.dial)
		var group sync.WaitGroup
		for range 50 {
			group.Go(func() { wantShown(t, asks(t, s, question("www.example.", dns.TypeA)), wwwFound) })
		}
		group.Wait()
		if n := m["r1:53"].asked.Load(); n != 1 {
			t.Errorf("the resolver was asked %d times, want 1", n)
		}
	})
}

// TestFirstOfFlightGoesAway ends the context of the app that has asked first.
func TestFirstOfFlightGoesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(t, func(_ string, q *dns.Msg) []*dns.Msg {
			time.Sleep(time.Second) // of synthetic time: it is a slow one
			return []*dns.Msg{replyTo(q, wwwRecord)}
		})
		s := newServer(t, &Config{Upstream: m.addrs()}, m.dial)
		ctx, cancel := context.WithCancel(t.Context())
		q := question("www.example.", dns.TypeA)
		text := packed(t, q)
		var group sync.WaitGroup
		group.Go(func() { wantShown(t, answerTo(t, q, s.answer(ctx, text, nobody, plainSize)), "SERVFAIL") })
		synctest.Wait()
		for range 3 {
			group.Go(func() { wantShown(t, asks(t, s, question("www.example.", dns.TypeA)), wwwFound) })
		}
		synctest.Wait()
		cancel()
		group.Wait()
		wantCounts(t, s, "questions=4 failed=1")
	})
}

// TestDialGetsDeadline has a dial that would take for ever.
func TestDialGetsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, &Config{Upstream: []string{"r1:53", "r2:53"}}, func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		start := time.Now()
		wantShown(t, asks(t, s, question("www.example.", dns.TypeA)), "SERVFAIL")
		if took := time.Since(start); took != questionTime {
			t.Errorf("it took %v, want %v", took, questionTime)
		}
		_, err := s.ask(t.Context(), question("www.example.", dns.TypeA), []string{"r1:53"})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ask = %v, want %v", err, context.DeadlineExceeded)
		}
	})
}

func TestSystemResolvers(t *testing.T) {
	for _, server := range SystemResolvers() {
		if _, _, err := net.SplitHostPort(server); err != nil {
			t.Errorf("SystemResolvers names %q, want host:port", server)
		}
	}
}
