package main

import (
	"go/ast"
	"go/token"
	"slices"
	"strings"
	"testing"
)

// repoFixedMakers make values that nobody can change afterwards.
var repoFixedMakers = []string{
	"errors.New", "fmt.Errorf",
	"regexp.MustCompile", "strings.NewReplacer", "template.Must",
	"netip.MustParseAddr", "netip.MustParseAddrPort", "netip.MustParsePrefix", "netip.AddrFrom4", "netip.AddrFrom16",
	"netip.IPv6LinkLocalAllNodes", "netip.IPv6Unspecified", "netip.IPv4Unspecified",
	"sync.OnceValue", "sync.OnceValues", "time.Unix", "big.NewInt", "base64.RawURLEncoding.Strict",
}

// TestRepoPackageVariables finds package variables that can change. Allowed are errors, a sync.Pool, embedded files,
// what repoFixedMakers make, and unexported tables that nothing in the package assigns to, written out or made by a
// function of the package; a comment with the word "immutable" at the declaration, and the reason, lets anything else
// pass.
func TestRepoPackageVariables(t *testing.T) {
	byDir := make(map[string][]*repoSource)
	for _, s := range repoCode(t) {
		byDir[s.dir()] = append(byDir[s.dir()], s)
	}
	for _, sources := range byDir {
		p := repoPackage{changed: make(map[string]string), tables: slices.Clone(repoFixedMakers)}
		for _, s := range sources {
			p.read(s)
		}
		for _, s := range sources {
			for _, d := range s.file.Decls {
				if d, ok := d.(*ast.GenDecl); ok && d.Tok == token.VAR {
					p.checkVars(t, s, d)
				}
			}
		}
	}
}

// repoPackage is what must be known of a whole package to judge its variables.
type repoPackage struct {
	changed map[string]string // name → where a function assigns to it
	tables  []string          // functions whose result makes a table: repoFixedMakers, and own ones that return a map, slice or array
}

func (p *repoPackage) checkVars(t *testing.T, s *repoSource, d *ast.GenDecl) {
	t.Helper()
	for _, spec := range d.Specs {
		spec := spec.(*ast.ValueSpec)
		for i, name := range spec.Names {
			var value ast.Expr
			if i < len(spec.Values) {
				value = spec.Values[i]
			}
			where := p.changed[name.Name]
			switch {
			case name.Name == "_", repoEscaped(d.Doc), repoEscaped(spec.Doc), repoEscaped(spec.Comment):
			case where != "":
				t.Errorf("%s: the package variable %s is changed at %s", s.at(name.Pos()), name.Name, where)
			case !p.fixed(name.Name, spec.Type, value):
				t.Errorf("%s: %s is a package variable that can change; give it an owner, or say at it why it is immutable",
					s.at(name.Pos()), name.Name)
			}
		}
	}
}

// repoEscaped reports whether a comment lets the variable pass.
func repoEscaped(group *ast.CommentGroup) bool {
	if group == nil {
		return false
	}
	return slices.ContainsFunc(group.List, func(c *ast.Comment) bool {
		return strings.Contains(c.Text, "mmutable") || strings.HasPrefix(c.Text, "//go:embed")
	})
}

// fixed reports whether a variable of that type and value cannot change, provided that nothing assigns to it.
func (p *repoPackage) fixed(name string, typ, value ast.Expr) bool {
	if typ != nil {
		if named := repoExpr(typ); named == "error" || named == "sync.Pool" {
			return true
		}
	}
	isErr := strings.HasPrefix(name, "err") || strings.HasPrefix(name, "Err")
	switch v := value.(type) {
	case *ast.UnaryExpr: // &StreamError{…}
		return v.Op == token.AND && isErr
	case *ast.SelectorExpr: // os.ErrDeadlineExceeded
		return isErr
	case *ast.CallExpr:
		return isErr || slices.Contains(p.tables, repoCallee(v))
	case *ast.CompositeLit:
		if v.Type != nil && repoExpr(v.Type) == "sync.Pool" {
			return true
		}
		return !ast.IsExported(name) // a table
	case *ast.BasicLit:
		return !ast.IsExported(name)
	}
	return false
}

// read takes note of the functions of s: what they return, and which names they assign to, count up or delete from. A
// name that the same function declares is a local one.
func (p *repoPackage) read(s *repoSource) {
	for _, d := range s.file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok || f.Body == nil {
			continue
		}
		if results := f.Type.Results; f.Recv == nil && results != nil && len(results.List) == 1 {
			switch results.List[0].Type.(type) {
			case *ast.MapType, *ast.ArrayType:
				p.tables = append(p.tables, f.Name.Name)
			}
		}
		local := repoLocals(f)
		mark := func(e ast.Expr) {
			if id := repoRootIdent(e); id != nil && !local[id.Name] && p.changed[id.Name] == "" {
				p.changed[id.Name] = s.at(id.Pos())
			}
		}
		ast.Inspect(f.Body, func(n ast.Node) bool { repoMarkChanged(n, mark); return true })
	}
}

// repoMarkChanged calls mark with every expression that the statement or expression n may change.
func repoMarkChanged(n ast.Node, mark func(ast.Expr)) {
	switch n := n.(type) {
	case *ast.AssignStmt:
		if n.Tok != token.DEFINE {
			for _, left := range n.Lhs {
				mark(left)
			}
		}
	case *ast.IncDecStmt:
		mark(n.X)
	case *ast.CallExpr:
		if fn := repoCallee(n); (fn == "delete" || fn == "clear" || fn == "copy") && len(n.Args) > 0 {
			mark(n.Args[0])
		}
	}
}

// repoLocals returns every name that f declares: receiver, parameters, results and variables.
func repoLocals(f *ast.FuncDecl) map[string]bool {
	local := make(map[string]bool)
	add := func(e ast.Expr) {
		if id, ok := e.(*ast.Ident); ok {
			local[id.Name] = true
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Field:
			for _, name := range n.Names {
				local[name.Name] = true
			}
		case *ast.AssignStmt:
			if n.Tok == token.DEFINE {
				for _, left := range n.Lhs {
					add(left)
				}
			}
		case *ast.RangeStmt:
			if n.Tok == token.DEFINE {
				add(n.Key)
				add(n.Value)
			}
		case *ast.ValueSpec:
			for _, name := range n.Names {
				local[name.Name] = true
			}
		}
		return true
	})
	return local
}

// repoRootIdent returns x of x, x.f, x[i], *x and (x).
func repoRootIdent(e ast.Expr) *ast.Ident {
	for {
		switch v := e.(type) {
		case *ast.Ident:
			return v
		case *ast.SelectorExpr:
			e = v.X
		case *ast.IndexExpr:
			e = v.X
		case *ast.SliceExpr:
			e = v.X
		case *ast.StarExpr:
			e = v.X
		case *ast.ParenExpr:
			e = v.X
		default:
			return nil
		}
	}
}
