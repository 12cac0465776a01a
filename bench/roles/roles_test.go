package main

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert/bench/load"
)

func TestOptions(t *testing.T) {
	o, err := parseOptions([]string{"-parts", "ingress, chain", "-rounds", "2"})
	if err != nil {
		t.Fatal(err)
	}
	if len(o.parts) != 2 || o.parts[0].name != "chain" || o.parts[1].name != "ingress" || o.rounds != 2 {
		t.Errorf("options = %+v, want two parts and two rounds", o)
	}
	for _, args := range [][]string{{"-parts", "love"}, {"-parts", "chain,love"}, {"more"}, {"-rounds", "0"}} {
		if o, err := parseOptions(args); err == nil {
			t.Errorf("parseOptions(%q) = %v, want an error", args, o)
		}
	}
}

// TestPromisesHaveParts wants each goal to name a part, and as many values below the line as above.
func TestPromisesHaveParts(t *testing.T) {
	for _, g := range promised {
		if _, err := choose(g.part); err != nil {
			t.Errorf("%s: %v", g.what, err)
		}
		if g.over != nil && len(g.over) != len(g.of) {
			t.Errorf("%s: %d values by %d", g.what, len(g.of), len(g.over))
		}
	}
}

func TestReach(t *testing.T) {
	r := &results{
		Rounds: []values{{"a": 10, "b": 5, "c": 1, "d": 4}, {"a": 30, "b": 10, "c": 1}, {"a": 20, "b": 20, "c": 1, "d": 2}},
		Faults: map[string]string{"broken": "no | way\nand the log"},
	}
	for name, one := range map[string]struct {
		goal    goal
		value   float64
		missing string
	}{
		"a value":                     {goal{of: []string{"a"}}, 20, ""},
		"a ratio of each round":       {goal{of: []string{"a"}, over: []string{"b"}}, 2, ""},
		"the lowest, of at least":     {goal{of: []string{"a", "c"}, over: []string{"b", "b"}, least: true}, 0.1, ""},
		"the highest, of at most":     {goal{of: []string{"c", "a"}, over: []string{"b", "b"}}, 2, ""},
		"a round without one of both": {goal{of: []string{"a"}, over: []string{"d"}}, (2.5 + 10) / 2, ""},
		"nothing":                     {goal{of: []string{"x"}}, 0, "no value"},
		"nothing, for a reason":       {goal{part: "broken", of: []string{"x"}}, 0, "no / way"},
	} {
		if got := r.reach(&one.goal); got.Value != one.value || got.Missing != one.missing {
			t.Errorf("%s: %v %q, want %v %q", name, got.Value, got.Missing, one.value, one.missing)
		}
	}
}

func TestParseH2load(t *testing.T) {
	const good = "finished in 3.00s, 13420.50 req/s, 14.3MB/s\nrequests: 40261 total, 40261 started, 40261 done, 40261 succeeded, 0 failed, 0 errored, 0 timeout\n"
	got, err := parseH2load(good)
	if err != nil || got.perSecond != 13420.5 {
		t.Errorf("parseH2load = %v, %v, want 13420.5", got, err)
	}
	for name, text := range map[string]string{
		"nothing":      "",
		"a failure":    strings.Replace(good, "0 failed", "1 failed", 1),
		"a timeout":    strings.Replace(good, "0 timeout", "2 timeout", 1),
		"none at all":  strings.Replace(good, "40261 succeeded", "0 succeeded", 1),
		"no rate seen": "requests: 1 total, 1 started, 1 done, 1 succeeded, 0 failed, 0 errored, 0 timeout\n",
	} {
		if got, err := parseH2load(text); err == nil {
			t.Errorf("%s: parseH2load = %v, want an error", name, got)
		}
	}
}

func TestQuantileOfLog(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	var b strings.Builder
	for i := range 20 {
		took := "100"
		if i < 2 {
			took = "9999" // the first tenth
		}
		if i == 19 {
			took = "300"
		}
		b.WriteString("1700000000000000\t200\t" + took + "\n")
	}
	for text, want := range map[string]time.Duration{b.String(): 300 * time.Microsecond, "": 0, "1\t503\t5\n": 0, "1\t200\tlong\n": 0} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := quantileOfLog(file, 0.99); got != want || (err == nil) != (want > 0) {
			t.Errorf("quantileOfLog(%.20q…) = %v, %v, want %v", text, got, err, want)
		}
	}
}

// TestBackend wants an answer to each head, however the heads come in.
func TestBackend(t *testing.T) {
	b, err := newBackend()
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for range 2 {
		res, err := client.Get("http://" + b.addr() + "/page")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		if err != nil || len(body) != bodyBytes || res.StatusCode != http.StatusOK {
			t.Errorf("GET = %s with %d bytes, %v, want %d", res.Status, len(body), err, bodyBytes)
		}
		_ = res.Body.Close()
	}
	c, err := net.Dial("tcp", b.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, part := range []string{"GET /a HTTP/1.1\r\n\r\nGET /b HT", "TP/1.1\r\n\r", "\n"} {
		if _, err := io.WriteString(c, part); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, 2*len(b.answer))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, append(bytes.Clone(b.answer), b.answer...)) {
		t.Errorf("two heads in three pieces: %v, want two answers", err)
	}
	long, err := net.Dial("tcp", b.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer long.Close()
	if _, err := long.Write(bytes.Repeat([]byte("x"), 16<<10)); err != nil {
		t.Fatal(err)
	}
	if text, _ := io.ReadAll(long); !bytes.HasPrefix(text, []byte("HTTP/1.1 431 ")) {
		t.Errorf("a head without end is answered by %q, want 431", text)
	}
}

// TestRoad cuts a connection: both of its ends see it, and the next one passes.
func TestRoad(t *testing.T) {
	to, err := load.NewTarget()
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	r, err := newRoad(to.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	c, err := load.Dial(r.addr(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := load.UseOnce(c, time.Now().Add(load.OpenPatience)); err != nil {
		t.Fatal(err)
	}
	r.cut()
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("Read after cut = %d bytes, want the end", n)
	}
	if err := load.OpenOnce(r.addr(), 0); err != nil {
		t.Errorf("a new connection after cut: %v", err)
	}
}

func TestGap(t *testing.T) {
	start := time.Now()
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	for name, one := range map[string]struct {
		good []time.Time
		want time.Duration
	}{
		"all":             {[]time.Time{at(-50), at(20), at(40), at(60), at(80)}, 20 * time.Millisecond},
		"out of order":    {[]time.Time{at(80), at(10), at(-1)}, 70 * time.Millisecond},
		"none since":      {[]time.Time{at(-20)}, 100 * time.Millisecond},
		"none at the end": {[]time.Time{at(10), at(20)}, 80 * time.Millisecond},
	} {
		a := &asker{good: one.good, end: at(100)}
		if got := a.gap(start); got != one.want {
			t.Errorf("%s: gap = %v, want %v", name, got, one.want)
		}
	}
}
