package main

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "rewrite the generated documentation")

// TestConfigurationReferenceIsCurrent generates docs/configuration.md from the doc comments and yaml tags
// of Config and of every struct in it, and from the flags of the commands.
func TestConfigurationReferenceIsCurrent(t *testing.T) {
	g := &reference{dirs: map[string]map[string]*ast.StructType{}, done: map[string]bool{}}
	g.text(referenceIntro)
	g.text("\n## The file\n\n")
	if err := g.section(".", "Config", ""); err != nil {
		t.Fatal(err)
	}
	g.text(policyIntro)
	if err := g.section(".", "PolicyFile", ""); err != nil {
		t.Fatal(err)
	}
	g.text("\n## Flags\n")
	root := rootCommand()
	for _, cmd := range root.Commands() {
		g.command(cmd)
	}
	const file = "../../docs/configuration.md"
	if *update {
		if err := os.WriteFile(file, g.out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, g.out.Bytes()) {
		t.Errorf("%s is not current; run: go test ./cmd/gateway -run ConfigurationReference -update", file)
	}
}

const referenceIntro = `# Configuration reference

<!-- Generated from the Config structs: go test ./cmd/gateway -run ConfigurationReference -update -->

` + "`gateway run -c FILE` reads one YAML file; `gateway check -c FILE` reports everything that is wrong with it,\n" +
	"each as `file:line: what, and what would be right`. Unknown fields are errors. A running gateway reads the file\n" +
	"again when it changes and on SIGHUP; a file that is wrong leaves the old configuration running. Flags alone make\n" +
	"the same configuration for the simple cases. Examples are in `deploy/examples`.\n\n" +
	"A *time* is written with its unit: `300ms`, `30s`, `5m`, `1h`. A *size* is written as `64KiB`, `512MiB`, `2GiB`.\n"

const policyIntro = "\n## Policy files\n\n" +
	"`policy: {files: [FILE]}` names files of rules. `gateway policy check FILE` reports what is wrong with one, `gateway\n" +
	"policy test FILE` runs the tests in it, and `gateway policy explain` says what it makes of a flow. AuthorizationPolicies,\n" +
	"PeerAuthentications and RequestAuthentications of Istio may stand in the same files, as other documents or a `List`. What\n" +
	"this gateway does not do is an error with its line, never left out.\n" +
	"\n" +
	"A deny rule that matches refuses. Where an allow rule is for the workload, only what an allow rule matches may reach it,\n" +
	"and what `allow` of the configuration names; else the default policy stands: the own trust domain and namespace. A value\n" +
	"is exact, `a*`, `*a`, or `*` for any that is there; a self-made key is only ever named whole. What a hop cannot see, such\n" +
	"as the path inside of a tunnel, does not allow and does not rule out a denial. Rules that ask or audit neither allow nor\n" +
	"deny: all of them that match count, also where they cannot be ruled out. A field without a value and an empty list are\n" +
	"errors, so that a rule that asks for a principal and names none does not let in everybody.\n" +
	"\n" +
	"Three things differ from Istio: where no ALLOW selects the workload our default policy stands, and not everything passes;\n" +
	"a policy without `rules` matches nothing, and `rules: [{}]` everything, whatever its action; and an empty list inside of a\n" +
	"rule is an error. `cluster.local` in a principal of Istio's is the trust domain of this gateway, whatever that is called.\n" +
	"CUSTOM asks the authorizer that `provider.name` names, AUDIT marks the flow in records, and the annotation\n" +
	"`istio.io/dry-run` does what `mode: report` does.\n" +
	"\n" +
	"A RequestAuthentication says which tokens count for its workloads: there a request with a token that is not valid, of\n" +
	"another issuer or for another audience is refused with 401, and one without a token passes as one without a request\n" +
	"principal. Without `fromHeaders` a token stands in `authorization` behind `Bearer `. `gateway policy explain\n" +
	"--token-claims JSON` says what becomes of a token, and `--bad-token WHY` of one that is not valid.\n" +
	"\n" +
	"`cel` is an expression of [CEL](https://cel.dev) that has to be true as well. It may ask for:\n" +
	"\n" +
	"- `peer.principal` (without `spiffe://`), `peer.trust_domain`, `peer.namespace`, `peer.service_account` and `peer.key` (of\n" +
	"  a self-made key), which are `\"\"` of who has none\n" +
	"- `source.ip`, `source.port`, `remote.ip`, `destination.ip`, `destination.port`, `destination.host`, `sni`, `listener`;\n" +
	"  `source.ip.inCIDR(\"10.0.0.0/8\")` compares an address with a range\n" +
	"- `request.method`, `request.path`, `request.host`, `request.headers[\"x-team\"]` and `\"x-team\" in request.headers`\n" +
	"- `token.issuer`, `token.subject`, `token.audiences` (a list) and `token.claims` (by name), empty without a token\n" +
	"- `workload.name`, `workload.namespace`, `workload.labels` (by name)\n" +
	"- `time`, such as `time.getHours(\"Europe/Berlin\") < 18`\n" +
	"\n" +
	"An expression that asks for what the hop cannot see, or that fails, as for a claim that is not there, is not known: an\n" +
	"allow rule with it does not match, and a deny rule does. `||` and `&&` leave out what they can, and `has(token.claims.a)`\n" +
	"finds out. Types are checked when the file is read, and what it may cost is bounded then and when it runs. It is tried\n" +
	"when everything else of the rule matches, so write `from` or `to` beside it where there are many rules.\n" +
	"\n" +
	"`gateway policy replay --policy FILE LOG` asks a file that is to come what gateways were asked, by their logs, and lists the\n" +
	"flows that it would decide otherwise. It asks as was asked then: peer, source, destination, listener, the route's `from: any`\n" +
	"and the addresses of a name are those of the record. Workloads, their labels, `allow` and `name` are those of the\n" +
	"configuration given by `-c`; without it a flow to a workload is replayed only where no rule asks for labels. A name that was\n" +
	"refused before it was resolved is judged as a name. Routes, the egress guard and what other gateways decide are left\n" +
	"out, and so is the port of the source. A day of 720,000 flows takes about a second, and memory for 65,536 different\n" +
	"questions and changes; of more changes the number is told. A line that is cut or has a key twice is counted, and not\n" +
	"guessed at; then the [exit code](exit-codes.md) is not 0.\n\n" +
	"With `gateway run --config-key PUB` a policy file needs a signature, as the configuration does:\n" +
	"[signed configurations](operations.md#signed-configurations).\n\n"

// reference writes the page.
type reference struct {
	out  bytes.Buffer
	dirs map[string]map[string]*ast.StructType // folder → its struct types
	done map[string]bool
	// deeper are the fields whose names are paths, by the path of the struct that they are in for the file.
	deeper map[string][]deeperField
}

// deeperField is a field that stands in another struct of the file than in Go.
type deeperField struct {
	dir, typeName, name string
	field               *ast.Field
	in                  *ast.StructType
}

func (g *reference) text(s string) { g.out.WriteString(s) }

// section writes the fields of a struct, then the structs in it.
func (g *reference) section(dir, typeName, path string) error {
	st, err := g.structType(dir, typeName)
	if err != nil {
		return err
	}
	if path != "" {
		fmt.Fprintf(&g.out, "\n### `%s`\n\n", path)
	}
	inners, err := g.fields(dir, typeName, path, st)
	if err != nil {
		return err
	}
	for _, d := range g.deeper[path] {
		inner, err := g.field(d.dir, d.typeName, path, d.name, d.field, d.in)
		if err != nil {
			return err
		}
		inners = append(inners, inner...)
	}
	for _, in := range inners {
		if err := g.section(in.dir, in.typeName, in.path); err != nil {
			return err
		}
	}
	return nil
}

// laterSection is a struct whose section is still to be written.
type laterSection struct{ dir, typeName, path string }

// fields writes the fields of one struct, those of inlined structs in their place, and returns the structs
// in it.
func (g *reference) fields(dir, typeName, path string, st *ast.StructType) ([]laterSection, error) {
	var later []laterSection
	for _, f := range st.Fields.List {
		if f.Tag == nil {
			continue
		}
		name, inline, ok := yamlName(reflect.StructTag(strings.Trim(f.Tag.Value, "`")).Get("yaml"))
		_, in := typeWord(f.Type)
		if inline {
			inlined, err := g.structType(importDir(dir, in.pkg), in.name)
			if err != nil {
				return nil, err
			}
			more, err := g.fields(importDir(dir, in.pkg), in.name, path, inlined)
			if err != nil {
				return nil, err
			}
			later = append(later, more...)
			continue
		}
		if !ok {
			continue
		}
		if parent, last := splitPath(name); parent != "" {
			if g.deeper == nil {
				g.deeper = make(map[string][]deeperField)
			}
			at := strings.TrimPrefix(path+"."+parent, ".")
			g.deeper[at] = append(g.deeper[at], deeperField{dir, typeName, last, f, st})
			continue
		}
		more, err := g.field(dir, typeName, path, name, f, st)
		if err != nil {
			return nil, err
		}
		later = append(later, more...)
	}
	return later, nil
}

// field writes one field, and returns the struct in it.
func (g *reference) field(dir, typeName, path, name string, f *ast.Field, st *ast.StructType) ([]laterSection, error) {
	word, in := typeWord(f.Type)
	doc := strings.Join(strings.Fields(f.Doc.Text()), " ")
	if doc == "" {
		return nil, fmt.Errorf("%s.%s (%s) has no doc comment", dir, typeName, name)
	}
	if in != nil && !g.isStruct(importDir(dir, in.pkg), in.name) {
		word, in = strings.Replace(word, "fields", "text", 1), nil // such as a password
	}
	fmt.Fprintf(&g.out, "- `%s` (%s): %s\n", name, word, sentence(doc, f.Names[0].Name, st))
	if in == nil {
		return nil, nil
	}
	at := strings.TrimPrefix(path+"."+name, ".") + in.suffix
	return []laterSection{{importDir(dir, in.pkg), in.name, at}}, nil
}

// sentence makes a doc comment fit for the page: without the Go name that it begins with, and with the
// names of the file for the other fields of the struct.
func sentence(doc, goName string, st *ast.StructType) string {
	if rest, ok := strings.CutPrefix(doc, goName+" "); ok {
		switch verb, after, _ := strings.Cut(rest, " "); {
		case verb == "is" || verb == "are":
			doc = after
		case strings.HasSuffix(verb, "s"): // lists, says, lets
			doc = rest
		}
	}
	named := strings.HasPrefix(doc, goName)
	for _, f := range st.Fields.List {
		if len(f.Names) != 1 || f.Tag == nil || len(f.Names[0].Name) < 3 {
			continue
		}
		if name, _, ok := yamlName(reflect.StructTag(strings.Trim(f.Tag.Value, "`")).Get("yaml")); ok {
			// HTTP is a field, and HTTP/2 is none.
			doc = regexp.MustCompile("\\b"+f.Names[0].Name+"\\b([^/]|$)").ReplaceAllString(doc, "`"+name+"`$1")
		}
	}
	if named {
		return doc
	}
	return strings.ToUpper(doc[:1]) + doc[1:]
}

// innerType is a struct named in a field's type.
type innerType struct{ pkg, name, suffix string }

func typeWord(e ast.Expr) (string, *innerType) {
	switch t := e.(type) {
	case *ast.Ident:
		switch t.Name {
		case "string":
			return "text", nil
		case "bool":
			return "true or false", nil
		case "Size":
			return "size", nil
		}
		if ast.IsExported(t.Name) {
			return "fields", &innerType{name: t.Name}
		}
		return "number", nil
	case *ast.SelectorExpr:
		pkg := t.X.(*ast.Ident).Name
		if pkg == "time" {
			return "time", nil
		}
		return "fields", &innerType{pkg: pkg, name: t.Sel.Name}
	case *ast.StarExpr:
		return typeWord(t.X)
	case *ast.ArrayType:
		word, in := typeWord(t.Elt)
		if in != nil {
			in.suffix = "[]" + in.suffix
		}
		return "list of " + strings.Replace(word, "text", "texts", 1), in
	case *ast.MapType:
		word, in := typeWord(t.Value)
		if in != nil {
			in.suffix = ".NAME" + in.suffix
		}
		return word + " by name", in
	}
	return "value", nil
}

// importDir is the folder of a package of this module, seen from dir.
func importDir(dir, pkg string) string {
	if pkg == "" {
		return dir
	}
	switch pkg {
	case "names":
		pkg = "capture/names"
	case "extauthz":
		pkg = "policy/extauthz"
	case "jwt":
		pkg = "pki/jwt"
	case "bearer":
		pkg = "pki/bearer"
	case "endpoint":
		pkg = "tunnel/endpoint"
	}
	return filepath.Join("../..", pkg)
}

func (g *reference) structType(dir, name string) (*ast.StructType, error) {
	if g.dirs[dir] == nil {
		types, err := structTypes(dir)
		if err != nil {
			return nil, err
		}
		g.dirs[dir] = types
	}
	st := g.dirs[dir][name]
	if st == nil {
		return nil, fmt.Errorf("no struct %s in %s", name, dir)
	}
	return st, nil
}

func (g *reference) isStruct(dir, name string) bool {
	_, err := g.structType(dir, name)
	return err == nil
}

func structTypes(dir string) (map[string]*ast.StructType, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	types := map[string]*ast.StructType{}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if spec, ok := n.(*ast.TypeSpec); ok {
				if st, ok := spec.Type.(*ast.StructType); ok {
					types[spec.Name.Name] = st
				}
			}
			return true
		})
	}
	return types, nil
}

// command writes the flags of a command and of those below it.
func (g *reference) command(cmd *cobra.Command) {
	if cmd.HasSubCommands() {
		for _, sub := range cmd.Commands() {
			g.command(sub)
		}
		return
	}
	if cmd.Name() == "help" || cmd.Hidden {
		return
	}
	fmt.Fprintf(&g.out, "\n### `%s`\n\n%s.\n", cmd.UseLine(), cmd.Short)
	first := true
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		if first {
			g.text("\n")
			first = false
		}
		value, usage := pflag.UnquoteUsage(f)
		short := ""
		if f.Shorthand != "" {
			short = "-" + f.Shorthand + ", "
		}
		def := ""
		if f.DefValue != "" && f.DefValue != "[]" && f.DefValue != "false" && f.DefValue != "0" {
			def = fmt.Sprintf(" (default `%s`)", f.DefValue)
		}
		fmt.Fprintf(&g.out, "- `%s--%s`: %s%s\n", short, strings.TrimSpace(f.Name+" "+value), usage, def)
	})
}
