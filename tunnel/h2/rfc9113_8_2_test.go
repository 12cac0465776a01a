package h2_test

import (
	"fmt"
	"testing"

	"culvert/tunnel/h2/h2test"
)

// malformedTable sends each header section as a request and wants it refused as malformed, alone.
func malformedTable(t *testing.T, sections map[string][]h2test.Field) {
	t.Helper()
	for name, fields := range sections {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := server(t, nil)
				p.tunnel(1)
				p.WriteHeaders(3, true, fields...)
				p.wantMalformed(3, "a malformed request")
				if n := p.handled(); n != 1 {
					t.Errorf("%d requests reached the handler, want 1", n)
				}
				p.wantEcho(1, "a stream error")
				p.wantServes(5, "a stream error")
			})
		})
	}
}

// "A field name MUST NOT contain characters in the ranges 0x00-0x20, 0x41-0x5a, or 0x7f-0xff (all ranges
// inclusive). … field names MUST NOT include a colon (ASCII COLON, 0x3a). … A field value MUST NOT contain
// the zero value (ASCII NUL, 0x00), line feed (ASCII LF, 0x0a), or carriage return (ASCII CR, 0x0d) at any
// position. … A field value MUST NOT start or end with an ASCII whitespace character" (section 8.2.1).
func TestRFC9113_8_2_1_FieldValidity(t *testing.T) {
	sections := map[string][]h2test.Field{}
	name := func(s string) { sections[fmt.Sprintf("name %q", s)] = h2test.Request("GET", "/", s, "v") }
	value := func(s string) { sections[fmt.Sprintf("value %q", s)] = h2test.Request("GET", "/", "x-a", s) }
	for _, c := range []byte{0, 1, 9, 10, 13, 31, ' ', 'A', 'M', 'Z', ':', 0x7f, 0x80, 0xff} {
		name("x" + string([]byte{c}) + "y")
		name(string([]byte{c}))
		name("x" + string([]byte{c}))
	}
	delete(sections, `name ":"`)
	name("Content-Type")
	name("")
	for _, s := range []string{"\x00", "a\x00", "a\nb", "a\rb", "a\r\nx-b: c", "\n", "\r", "a\n", " ", "\t", " a", "a ", "\ta", "a\t", " a "} {
		value(s)
	}
	for _, f := range []string{":method", ":scheme", ":authority", ":path"} {
		for _, bad := range []string{"a\nb", "a\x00", " a", "a ", "a\r"} {
			fields := h2test.Request("GET", "/")
			for i := range fields {
				if fields[i].Name == f {
					fields[i].Value = bad
				}
			}
			sections[fmt.Sprintf("%s %q", f, bad)] = fields
		}
	}
	malformedTable(t, sections)
}

func TestRFC9113_8_2_1_FieldsThatAreValid(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := server(t, nil)
		want := h2test.Fields("x-empty", "", "x-inner", "a b\tc", "x-obs", "\x80\xff", "!#$%&'*+-.^_`|~09az", "token", "te", "trailers",
			"x-colon", "a:b", "x-twice", "1", "x-twice", "2")
		p.WriteHeaders(1, true, append(h2test.Request("GET", "/"), want...)...)
		p.WantHeaders(1, "valid fields", map[string]string{":status": "200"})
		got := p.seen[p.handled()-1].Fields
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("fields %v, want %v", got, want)
		}
	})
}

// "Any message containing connection-specific header fields MUST be treated as malformed (Section 8.1.1).
// The only exception to this is the TE header field …; it MUST NOT contain any value other than 'trailers'"
// (section 8.2.2).
func TestRFC9113_8_2_2_ConnectionSpecific(t *testing.T) {
	sections := map[string][]h2test.Field{}
	for _, f := range [][2]string{{"connection", "keep-alive"}, {"connection", "close"}, {"connection", ""}, {"proxy-connection", "keep-alive"},
		{"keep-alive", "timeout=5"}, {"transfer-encoding", "chunked"}, {"transfer-encoding", "identity"}, {"upgrade", "h2c"},
		{"te", "gzip"}, {"te", "trailers, gzip"}, {"te", "trailers;q=0.5"}, {"te", ""}} {
		sections[f[0]+" "+f[1]] = h2test.Request("GET", "/", f[0], f[1])
		sections["CONNECT "+f[0]+" "+f[1]] = h2test.Connect("a:1", f[0], f[1])
	}
	malformedTable(t, sections)
}
