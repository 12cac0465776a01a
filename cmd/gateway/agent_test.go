package main

import (
	"strings"
	"testing"

	"culvert/tunnel/tunneltest"
)

// TestAgentUsage starts agents with one fault each: a line says what it is and what would be right.
func TestAgentUsage(t *testing.T) {
	for _, tt := range []struct{ line, want string }{
		{"", "--via: there is no gateway to register at; give its host:port, such as --via gw.example:15008"},
		{"--via a:1", "--offer: nothing is offered, so that every flow would be refused; name what flows to a port reach"},
		{"--via a --offer 80=b:1", `--via: "a" is no address of a hop: it has no port`},
		{"--via a:1,a:1 --offer 80=b:1 --hop-id spiffe://x", `--hop-id: "spiffe://x" is not a SPIFFE ID`},
		{"--via a:1 --offer 80", `--offer: "80" is not PORT=HOST:PORT, such as 80=127.0.0.1:8080`},
		{"--via a:1 --offer 080=b:1", `--offer: "080=b:1" is not PORT=HOST:PORT`},
		{"--via a:1 --offer 70000=b:1", `--offer: "70000=b:1" is not PORT=HOST:PORT`},
		{"--via a:1 --offer 80=b", `--offer: destination "b": it has no port`},
		{"--via a:1 --offer 80=b:1 --offer 80=c:1", "--offer: port 80 is offered twice"},
		{"--via a:1 --offer 80=b:1 --name B", `--name: "B" is not the canonical spelling of the name, which is b`},
		{"--via a:1 --offer 80=b:1 --name b --name b", `--name: "b" is there twice`},
		{"--via a:1 --offer 80=b:1 --name 10.0.0.1", `--name: "10.0.0.1" is an address`},
		{"--via a:1 --offer 80=b:1 --name *.b", `--name: "*.b" is no name`},
		{"--via a:1 --offer 80=b:1 --connections -1", "--connections: the number is negative"},
		{"--via a:1 --offer 80=b:1 --allow https://x", `--allow: "https://x"`},
		{"--via a:1 --offer 80=b:1 --socks :1", "unknown flag: --socks; `gateway agent --help` lists the flags"},
		{"cam1", "`gateway agent` takes no argument"},
	} {
		var out tunneltest.Log
		code := execute(t.Context(), append([]string{"agent"}, strings.Fields(tt.line)...), &out, &out)
		if text := out.String(); code != exitUsage || !strings.Contains(text, tt.want) || strings.Count(text, "\n") > 1 {
			t.Errorf("gateway agent %s = %d, %q, want %d and one line with %q", tt.line, code, text, exitUsage, tt.want)
		}
	}
}

// TestAgentConfig checks files with agents in them, at both ends.
func TestAgentConfig(t *testing.T) {
	const hub = `
listeners:
- {name: mesh, kind: hbone, address: ":15008", agents: [{from: [cluster.local/ns/devices/*], names: ["{sa}.devices.example", "*.cams.example"]}]}
- {name: apps, kind: socks5, address: "127.0.0.1:1080"}
routes:
- {listeners: [apps], hosts: ["*.example"], destinations: ["fd00::/8"], agents: true}
`
	const agent = `
listeners:
- {name: home, kind: agent, hop: gw, names: [cam1.devices.example], offer: {80: "127.0.0.1:8080"}, connections: 2}
hops:
  gw: {address: "gw.example:15008"}
`
	m := newMesh(t)
	for _, tt := range []struct{ name, file, old, new, want string }{
		{"a right gateway", hub, "", "", ""},
		{"a right agent", agent, "", "", ""},
		{"an agent through a chain", agent, "hop: gw", `hop: gw, via: ["lb:15008"]`, ""},
		{"an agent with a route", agent, `offer: {80: "127.0.0.1:8080"}, connections: 2}`, "}\nroutes:\n- {destinations: [\"127.0.0.1:8080\"]}", ""},
		{"an agent without hop", agent, "hop: gw, ", "", "the agent has no hop where it registers"},
		{"an agent at no hop", agent, "hop: gw,", "hop: nobody,", `there is no hop "nobody"`},
		{"an agent that listens", agent, "hop: gw,", `hop: gw, address: ":1",`, "dials its hop, and listens nowhere"},
		{"an agent that offers nothing", agent, `, offer: {80: "127.0.0.1:8080"}`, "", `no route leads anywhere from listener "home"`},
		{"an offer without port", agent, "127.0.0.1:8080", "127.0.0.1", "it should be host:port, such as 127.0.0.1:8080"},
		{"an offer at port 0", agent, "{80:", "{0:", "0 is no port"},
		{"a name twice", agent, "[cam1.devices.example]", "[a.example, a.example]", `"a.example" is there twice`},
		{"names of another kind", hub, "kind: socks5, ", "kind: socks5, names: [a], ", "only a listener of kind agent has names"},
		{"agents of another kind", hub, "kind: socks5, ", "kind: socks5, agents: [{from: [x.example/a]}], ", "agents register at a listener of kind hbone"},
		{"agents of nobody", hub, "from: [cluster.local/ns/devices/*], ", "", "it names nobody; add from:"},
		{"agents of anybody", hub, "from: [cluster.local/ns/devices/*]", "from: [any]", "an agent has an identity"},
		{"a bad principal", hub, "cluster.local/ns/devices/*", "https://x", `"https://x" has a scheme`},
		{"a pattern with a port", hub, "*.cams.example", "*.cams.example:80", "an agent claims a name for all ports"},
		{"a pattern of addresses", hub, "*.cams.example", "fd00::/8", "an agent has the addresses of its own key without a claim"},
		{"a pattern that is none", hub, "{sa}.devices", "{name}.devices", "is no pattern for names"},
		{"a route with via", hub, "agents: true", `agents: true, via: ["gw:1"]`, "agents are reached on the connections that they have dialled"},
		{"a route with source", hub, "agents: true", `agents: true, source: keep`, "an agent sees this gateway"},
		{"a route to local", hub, "destinations: [\"fd00::/8\"]", "destinations: [local]", "what is local is reached directly"},
		{"agents without a route", hub, ", agents: true", "", "no route leads to agents"},
		{"a route to no agents", hub, "agents: [{from: [cluster.local/ns/devices/*], names: [\"{sa}.devices.example\", \"*.cams.example\"]}]", "strict: false", "no agent can register"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := strings.Replace(tt.file, tt.old, tt.new, 1) + m.yaml("exit")
			if tt.old != "" && !strings.Contains(tt.file, tt.old) {
				t.Fatalf("the file has no %s", tt.old)
			}
			var out tunneltest.Log
			code := execute(t.Context(), []string{"check", "-c", m.write("agent.yaml", []byte(text))}, &out, &out)
			if tt.want == "" && code != exitOK || tt.want != "" && (code != exitUsage || !strings.Contains(out.String(), tt.want)) {
				t.Errorf("check = %d, %q, want %q", code, out.String(), tt.want)
			}
		})
	}
}
