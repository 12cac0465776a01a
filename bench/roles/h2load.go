package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// h1Clients are connections over HTTP/1.1, each with a request at a time.
	h1Clients = 64
	// h2Clients are connections over HTTP/2, each with h2Streams requests at a time.
	h2Clients, h2Streams = 8, 8
)

// ask is one run of h2load.
type ask struct {
	addr string
	host string
	h2   bool
	tls  bool
	rate float64 // requests a second; 0: as many as go
}

// answered is what h2load found.
type answered struct {
	perSecond float64
	p99       time.Duration // only with a rate
}

// summary is the line of h2load that counts responses by status, and h2loadRate that of the throughput.
var (
	h2loadRate  = regexp.MustCompile(`finished in .*?, ([0-9.]+) req/s`)
	h2loadCount = regexp.MustCompile(`requests: \d+ total, \d+ started, \d+ done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout`)
)

// run has h2load ask for d. A request that fails is an error.
func (a *ask) run(ctx context.Context, s *site, warm, d time.Duration) (*answered, error) {
	scheme, clients := "http", h1Clients
	if a.tls {
		scheme = "https"
	}
	args := []string{"--threads=1", "--duration=" + span(d), "--connect-to=" + a.addr}
	log := s.path("h2load.log")
	if a.h2 {
		clients = h2Clients
		args = append(args, "--max-concurrent-streams="+strconv.Itoa(h2Streams))
		if !a.tls {
			args = append(args, "--no-tls-proto=h2c")
		}
	} else {
		args = append(args, "--h1")
	}
	args = append(args, "--clients="+strconv.Itoa(clients))
	if a.rate > 0 { // a log with times, and no warm-up, for which h2load would not keep the pace
		_ = os.Remove(log) // of the last run, if any
		args = append(args, fmt.Sprintf("--rps=%.2f", a.rate/float64(clients)), "--log-file="+log)
	} else {
		args = append(args, "--warm-up-time="+span(warm))
	}
	out, err := exec.CommandContext(ctx, "h2load", append(args, scheme+"://"+a.host+"/page")...).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("h2load: %w: %s", err, last(string(out)))
	}
	got, err := parseH2load(string(out))
	if err != nil || a.rate == 0 {
		return got, err
	}
	got.p99, err = quantileOfLog(log, 0.99)
	return got, err
}

// span is a duration as h2load takes it.
func span(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) + "ms" }

// last is the end of an output.
func last(text string) string {
	text = strings.TrimSpace(text)
	return text[max(0, len(text)-500):]
}

// parseH2load reads the output of h2load, which is an error if a request failed, or none succeeded.
func parseH2load(text string) (*answered, error) {
	rate, count := h2loadRate.FindStringSubmatch(text), h2loadCount.FindStringSubmatch(text)
	if rate == nil || count == nil {
		return nil, fmt.Errorf("h2load says nothing of requests: %s", last(text))
	}
	if count[1] == "0" || slices.ContainsFunc(count[2:], func(n string) bool { return n != "0" }) {
		return nil, fmt.Errorf("h2load: %s", count[0])
	}
	perSecond, err := strconv.ParseFloat(rate[1], 64)
	return &answered{perSecond: perSecond}, err
}

// quantileOfLog is a quantile of the times in a log of h2load, whose lines are the start, the status and how long it
// took until the end of the response, in microseconds. The first tenth is left out.
func quantileOfLog(file string, q float64) (time.Duration, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var times []int64
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) != 3 || fields[1] != "200" {
			return 0, fmt.Errorf("h2load's log: %q", lines.Text())
		}
		n, err := strconv.ParseInt(fields[2], 10, 64)
		if err != nil {
			return 0, err
		}
		times = append(times, n)
	}
	times = times[len(times)/10:]
	if len(times) == 0 {
		return 0, fmt.Errorf("h2load's log is empty")
	}
	slices.Sort(times)
	return time.Duration(times[min(int(q*float64(len(times))), len(times)-1)]) * time.Microsecond, nil
}
