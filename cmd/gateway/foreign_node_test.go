package main_test

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"
)

// nodeClient is a CONNECT client made of Node's http2. Its argument is a JSON object (nodeTask); it prints one
// (nodeResult).
const nodeClient = `
const h2 = require('http2'), fs = require('fs'), crypto = require('crypto');
const task = JSON.parse(fs.readFileSync(process.argv[2], 'utf8'));
const pem = name => fs.readFileSync(task.dir + '/' + name);
const fail = err => { console.log(JSON.stringify({fault: String(err.stack || err)})); process.exit(0); };
process.on('uncaughtException', fail);
process.on('unhandledRejection', fail);
const session = h2.connect('https://' + task.exit, {
  ca: pem('root.pem'), cert: pem(task.who + '.pem'), key: pem(task.who + '.key'), minVersion: 'TLSv1.3',
  checkServerIdentity: (_, cert) => cert.subjectaltname === 'URI:' + task.id ? undefined : new Error('it is ' + cert.subjectaltname),
});
session.on('error', fail);
session.on('goaway', code => fail(new Error('GOAWAY ' + code)));

// ask makes one request and returns what came. What is accepted gets body and the end; what is refused is left to the
// server to end.
const ask = (headers, body) => new Promise(done => {
  const got = {status: 0, proxyStatus: '', error: '', ended: false, body: []};
  const r = session.request(headers, {endStream: false});
  r.on('response', h => {
    got.status = h[':status'];
    got.proxyStatus = String(h['proxy-status'] || '');
    if (got.status === 200) r.end(body);
  });
  r.on('data', d => got.body.push(d));
  r.on('end', () => { got.ended = true; });
  r.on('error', err => { got.error = err.code; });
  r.on('close', () => {
    got.reset = r.rstCode;
    got.body = Buffer.concat(got.body);
    done(got);
  });
});
const connect = (authority, body) => ask({':method': 'CONNECT', ':authority': authority}, body);
const same = (got, want) => got.status === 200 && got.ended && got.reset === 0 && got.body.equals(want);

// serverFirst reads to the server's end, and sends only then.
const serverFirst = (authority, body) => new Promise(done => {
  let n = 0;
  const r = session.request({':method': 'CONNECT', ':authority': authority}, {endStream: false});
  const before = session.socket.bytesWritten;
  const sent = () => session.socket.bytesWritten - before >= body.length ? done(n) : setTimeout(sent, 5);
  r.on('data', d => n += d.length);
  r.on('end', () => r.end(body));
  r.on('error', fail);
  r.on('close', sent); // Node 18 lets go of a stream before its bytes are out
});

(async () => {
  const result = {refused: []};
  const mega = crypto.randomBytes(1 << 20);
  if (task.echo) {
    result.echo = same(await connect(task.echo, mega), mega);
    const all = await Promise.all(Array.from({length: 10}, () => connect(task.echo, mega)));
    result.echoes = all.filter(got => same(got, mega)).length;
    result.empty = same(await connect(task.echo, Buffer.alloc(0)), Buffer.alloc(0));
  }
  if (task.first) result.first = await serverFirst(task.first, mega);
  for (const headers of task.ask || []) {
    const got = await ask(headers, Buffer.from('12345'));
    const again = Buffer.from('still here');
    const alive = !task.echo || same(await connect(task.echo, again), again);
    result.refused.push({status: got.status, proxyStatus: got.proxyStatus, reset: got.reset, error: got.error, body: got.body.toString(), alive});
  }
  result.sha256 = crypto.createHash('sha256').update(mega).digest('hex');
  console.log(JSON.stringify(result));
  session.close(); // what was sent is on its way still
})();`

// protocolError is PROTOCOL_ERROR (RFC 9113, section 7), which Node tells as a number.
const protocolError = 1

// nodeTask is what nodeClient is to do.
type nodeTask struct {
	Dir   string              `json:"dir"`
	Exit  string              `json:"exit"`
	ID    string              `json:"id"`
	Who   string              `json:"who"`
	Echo  string              `json:"echo,omitempty"`  // an echo server
	First string              `json:"first,omitempty"` // a server that ends first
	Ask   []map[string]string `json:"ask"`
}

type nodeResult struct {
	Fault   string // why there is nothing else
	Echo    bool   // 1 MiB went and came, and both ends
	Echoes  int    // of ten at the same time, how many did
	Empty   bool
	First   int // bytes until the server's end
	SHA256  string
	Refused []struct {
		Status             int
		ProxyStatus, Error string
		Reset              int
		Body               string
		Alive              bool // another tunnel on the same connection works after it
	}
}

func runNode(t *testing.T, task nodeTask) (result nodeResult) {
	t.Helper()
	dir := t.TempDir()
	text, err := json.Marshal(task)
	if err != nil {
		t.Fatal(err)
	}
	script, file := filepath.Join(dir, "client.js"), filepath.Join(dir, "task.json")
	for name, b := range map[string][]byte{script: []byte(nodeClient), file: text} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out := run(t, "node", script, file)
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		t.Fatalf("Node says %q: %v", out, err)
	}
	if result.Fault != "" {
		t.Fatalf("Node: %s", result.Fault)
	}
	if len(result.Refused) != len(task.Ask) {
		t.Fatalf("Node has %d answers, want %d", len(result.Refused), len(task.Ask))
	}
	return result
}

// TestForeignNodeConnect has Node's http2 as the CONNECT client of our exit.
func TestForeignNodeConnect(t *testing.T) {
	m := newMesh(t)
	exit := m.exit(t)
	digests := make(chan string, 1)
	first := serve(t, func(nc *net.TCPConn) {
		_ = nc.SetDeadline(time.Now().Add(patience))
		_, err := nc.Write(make([]byte, 1<<20))
		if err == nil {
			err = nc.CloseWrite()
		}
		b, err2 := io.ReadAll(nc)
		if err != nil || err2 != nil {
			t.Errorf("a server that ends first: %v, %v", err, err2)
		}
		digests <- digest(b)
	})
	got := runNode(t, nodeTask{Dir: m.dir, Exit: exit.addr, ID: serverID, Who: "client", Echo: serve(t, echo), First: first})
	if !got.Echo || got.Echoes != 10 || !got.Empty {
		t.Errorf("echo of 1 MiB: %t, at the same time: %d of 10, of nothing: %t", got.Echo, got.Echoes, got.Empty)
	}
	if got.First != 1<<20 {
		t.Errorf("from a server that ends first: %d bytes, want %d", got.First, 1<<20)
	}
	select {
	case d := <-digests:
		if d != got.SHA256 {
			t.Errorf("to a server that has ended: SHA-256 %s, want %s", d, got.SHA256)
		}
	case <-time.After(patience):
		t.Error("a server that has ended does not get the client's end")
	}
	exit.idle(t)
}

// badAuthorities are destinations that must be answered with 400. HOST is an echo server's host, PORT its port.
var badAuthorities = []struct{ name, authority string }{
	{"no port", "HOST"},
	{"empty port", "HOST:"},
	{"port 0", "HOST:0"},
	{"port 99999", "HOST:99999"},
	{"port that wraps", "HOST:4294967376"},
	{"port with a sign", "HOST:+PORT"},
	{"port with a leading zero", "HOST:0PORT"},
	{"named port", "HOST:http"},
	{"no host", ":PORT"},
	{"userinfo", "user@HOST:PORT"},
	{"userinfo with a password", "user:secret@HOST:PORT"},
	{"zone", "[fe80::1%lo]:PORT"},
	{"encoded zone", "[fe80::1%25lo]:PORT"},
	{"IPv4 with a zone", "HOST%lo:PORT"},
	{"empty brackets", "[]:PORT"},
	{"IPv4 in brackets", "[HOST]:PORT"},
	{"IPv6 without brackets", "::1:PORT"},
	{"IPv6 written long", "[0:0:0:0:0:0:0:1]:PORT"},
	{"IPv4-mapped", "[::ffff:127.0.0.1]:PORT"},
	{"hexadecimal", "0x7f.1:PORT"},
	{"hexadecimal number", "0x7f000001:PORT"},
	{"short", "127.1:PORT"},
	{"number", "2130706433:PORT"},
	{"octal", "0177.0.0.1:PORT"},
	{"leading zeros", "127.000.000.001:PORT"},
	{"scheme", "http://HOST:PORT"},
	{"path", "HOST:PORT/"},
	{"list", "HOST:PORT,HOST:PORT"},
	{"space inside", "HOST PORT:PORT"},
	{"percent-encoded", "%31%32%37.0.0.1:PORT"},
	{"not ASCII", "caf\u00e9.example:PORT"},
	{"tab", "HOST\t:PORT"},
}

// TestForeignNodeRefusals shows what Node's http2 gets for what our exit refuses, and that each refusal leaves the
// connection as it was.
func TestForeignNodeRefusals(t *testing.T) {
	m := newMesh(t)
	exit := m.exit(t)
	target, closed := serve(t, echo), freeAddr(t)
	host, port, _ := net.SplitHostPort(target)
	type answer struct {
		name   string
		ask    map[string]string
		status int
		says   string
	}
	var tests []answer
	add := func(name string, status int, says string, ask map[string]string) {
		tests = append(tests, answer{name, ask, status, says})
	}
	for _, tt := range badAuthorities {
		authority := strings.NewReplacer("HOST", host, "PORT", port).Replace(tt.authority)
		add(tt.name, 400, "http_request_error", map[string]string{":method": "CONNECT", ":authority": authority})
	}
	add("nothing listens", 503, "connection_refused", map[string]string{":method": "CONNECT", ":authority": closed})
	add("unknown name", 503, "destination_not_found", map[string]string{":method": "CONNECT", ":authority": "web.example:80"})
	add("another host", 400, "http_request_error", map[string]string{":method": "CONNECT", ":authority": "192.0.2.1:80"})
	for _, method := range []string{"GET", "POST", "PUT", "OPTIONS", "HEAD"} {
		add(method, 400, "http_request_error", map[string]string{":method": method, ":scheme": "https", ":path": "/", ":authority": target})
	}
	// RFC 9110, section 9.3.6: a CONNECT has no content, so content-length means nothing and must not cut the tunnel.
	for _, length := range []string{"0", "3", "5", "100"} {
		add("content-length "+length, 200, "", map[string]string{":method": "CONNECT", ":authority": target, "content-length": length})
	}
	task := nodeTask{Dir: m.dir, Exit: exit.addr, ID: serverID, Who: "client", Echo: target}
	for _, tt := range tests {
		task.Ask = append(task.Ask, tt.ask)
	}
	for i, got := range runNode(t, task).Refused {
		tt := tests[i]
		t.Run(tt.name, func(t *testing.T) {
			if got.Status != tt.status || !strings.Contains(got.ProxyStatus, tt.says) {
				t.Errorf("%q = %d, %q, reset %d %s, want %d, %s", tt.ask, got.Status, got.ProxyStatus, got.Reset, got.Error, tt.status, tt.says)
			}
			// RFC 9113, section 8.1: a complete answer may be followed by RST_STREAM(NO_ERROR); ztunnel does so. Control
			// characters also make a request malformed, of which section 8.1.1 says: "For malformed requests, a server MAY
			// send an HTTP response prior to closing or resetting the stream."
			malformed := strings.ContainsFunc(tt.ask[":authority"], unicode.IsControl) && got.Reset == protocolError
			if (got.Reset != 0 || got.Error != "") && !malformed {
				t.Errorf("%q ends with reset %d %s, want NO_ERROR", tt.ask, got.Reset, got.Error)
			}
			if want := map[bool]string{true: "12345"}[tt.status == 200]; got.Body != want {
				t.Errorf("content of the answer = %q, want %q", got.Body, want)
			}
			if !got.Alive {
				t.Error("another tunnel on the same connection does not work any more")
			}
		})
	}
	exit.idle(t)
}

// TestForeignNodeMalformed shows that what RFC 9113, section 8.1.1, calls malformed ends its stream and nothing else.
func TestForeignNodeMalformed(t *testing.T) {
	m := newMesh(t)
	exit := m.exit(t)
	target := serve(t, echo)
	tests := []struct {
		name  string
		extra map[string]string
	}{
		{"content-length that is no number", map[string]string{"content-length": "x"}},
		{"content-length with a sign", map[string]string{"content-length": "+5"}},
		{"content-length in hexadecimal", map[string]string{"content-length": "0x5"}},
		{"content-length as a list", map[string]string{"content-length": "5, 6"}},
		{"negative content-length", map[string]string{"content-length": "-1"}},
		{"another host", map[string]string{"host": "192.0.2.1:80"}},
		{"control character in the authority", map[string]string{":authority": "127.0.0.1\x01:80"}},
		{"DEL in the authority", map[string]string{":authority": "127.0.0.1\x7f:80"}},
		{"CR LF in the authority", map[string]string{":authority": "127.0.0.1:80\r\nx: y"}},
		{"LF in the authority", map[string]string{":authority": "127.0.0.1\n:80"}},
		{"NUL in the authority", map[string]string{":authority": "127.0.0.1\x00:80"}},
	}
	task := nodeTask{Dir: m.dir, Exit: exit.addr, ID: serverID, Who: "client", Echo: target}
	for _, tt := range tests {
		ask := map[string]string{":method": "CONNECT", ":authority": target}
		for name, value := range tt.extra {
			ask[name] = value
		}
		task.Ask = append(task.Ask, ask)
	}
	for i, got := range runNode(t, task).Refused {
		t.Run(tests[i].name, func(t *testing.T) {
			if got.Status != 400 && got.Reset != protocolError {
				t.Errorf("answer = %d, reset %d %s, want 400 or PROTOCOL_ERROR", got.Status, got.Reset, got.Error)
			}
			if !got.Alive {
				t.Error("another tunnel on the same connection does not work any more")
			}
		})
	}
}

// TestForeignNodeStranger has Node as a client of another namespace.
func TestForeignNodeStranger(t *testing.T) {
	m := newMesh(t)
	exit := m.exit(t)
	target := serve(t, echo)
	ask := map[string]string{":method": "CONNECT", ":authority": target}
	got := runNode(t, nodeTask{Dir: m.dir, Exit: exit.addr, ID: serverID, Who: "otherns", Ask: []map[string]string{ask, ask}})
	for i, r := range got.Refused {
		if r.Status != 401 || r.Reset != 0 || !strings.Contains(r.ProxyStatus, "http_request_denied") {
			t.Errorf("request %d of another namespace = %d, %q, reset %d, want 401 and http_request_denied", i+1, r.Status, r.ProxyStatus, r.Reset)
		}
		for _, secret := range []string{target, "spiffe:", `"default" of`} { // the reason in our record names these
			if strings.Contains(r.ProxyStatus, secret) {
				t.Errorf("proxy-status %q tells the peer %q", r.ProxyStatus, secret)
			}
		}
	}
	exit.says(t, "peer="+othernsID, "reason=denied", "dst="+target)
	exit.idle(t)
}
