package endpoint

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"
)

const (
	// maxProbes is how many probes of a Set may be under way at once: those to endpoints that do not answer hold a connection each.
	maxProbes = 64
	// maxProbeAnswer is how much of the answer to a GET is read: its head.
	maxProbeAnswer = 16 << 10
	// probeAgain is how soon a Set without endpoints is looked at again.
	probeAgain = time.Second
)

// probeLoop probes the endpoints one after the other, all of them once in an interval.
func (s *Set) probeLoop(ctx context.Context, conf HealthConfig) {
	slots := make(chan struct{}, maxProbes)
	defer func() {
		for range maxProbes { // until the last one has ended, which ctx sees to
			slots <- struct{}{}
		}
	}()
	for {
		members := s.probed()
		pause := max(conf.Interval/time.Duration(max(len(members), 1)), 0)
		if len(members) == 0 {
			pause = min(conf.Interval, probeAgain)
		}
		for _, m := range members {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			go func() { // ends after the probe's timeout or with ctx; probeLoop waits for it
				defer func() { <-slots }()
				s.probe(ctx, m, &conf)
			}()
			if !sleep(ctx, pause) {
				return
			}
		}
		if len(members) == 0 && !sleep(ctx, pause) {
			return
		}
	}
}

// probed returns what is to be probed.
func (s *Set) probed() []*member {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.members // the list is replaced, not changed
}

// probe asks one endpoint and notes what it finds.
func (s *Set) probe(ctx context.Context, m *member, c *HealthConfig) {
	s.mu.Lock()
	e, gone := m.e, m.gone
	s.unlock()
	if gone {
		return
	}
	within, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	var err error
	switch {
	case c.Probe == ProbePing:
		err = s.env.Ping(within, e)
	default:
		var nc net.Conn
		if nc, err = s.env.Dial(within, e); err == nil {
			if c.Probe == ProbeHTTP {
				err = get(within, nc, e, c)
			}
			_ = nc.Close() // nothing more is expected of it
		}
	}
	if ctx.Err() != nil {
		return // it was not the endpoint
	}
	if err != nil && errors.Is(within.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %s", c.Timeout)
	}
	s.noteProbe(m, c, err)
}

// get asks for the path, and returns why the answer is not a good one.
func get(ctx context.Context, nc net.Conn, e *Endpoint, c *HealthConfig) error {
	defer context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })() // what is closed needs none
	host := c.Host
	if host == "" {
		host = e.String()
	}
	if _, err := fmt.Fprintf(nc, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: culvert\r\nConnection: close\r\n\r\n", c.Path, host); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(io.LimitReader(nc, maxProbeAnswer)), nil)
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		return fmt.Errorf("GET %s was answered with %d", c.Path, resp.StatusCode)
	}
	return nil
}

// noteProbe notes the result of one probe.
func (s *Set) noteProbe(m *member, c *HealthConfig, err error) {
	s.mu.Lock()
	defer s.unlock()
	if err != nil {
		m.remember(err)
	}
	if m.gone || s.conf.Health != *c {
		return
	}
	if (err != nil) == m.down {
		m.probes = 0
		return
	}
	m.probes++
	switch {
	case !m.down && m.probes >= c.Unhealthy:
		s.note(slog.LevelWarn, "endpoint is down", slog.String("endpoint", m.e.String()), slog.String("reason", m.problem))
	case m.down && m.probes >= c.Healthy:
		s.note(slog.LevelInfo, "endpoint is up", slog.String("endpoint", m.e.String()))
	default:
		return
	}
	m.down, m.probes, s.stale = !m.down, 0, true
}
