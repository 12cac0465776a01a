package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/token"
	"path"
	"strings"
	"testing"
)

// Sizes beyond which nobody reads a file or a function in one go, and the number of goroutines that the HTTP/2 stack
// can explain.
const (
	repoMaxFileLines = 600
	repoMaxFuncLines = 70
	repoMaxGoInH2    = 5 // reader, writer on demand, handler, pipe; and the HTTP adapter, for a body beside its response
)

// repoCode is what people wrote for the programs: no tests, nothing generated.
func repoCode(t *testing.T) []*repoSource {
	t.Helper()
	var list []*repoSource
	for _, s := range repoSources(t) {
		if !s.test && !s.generated {
			list = append(list, s)
		}
	}
	return list
}

func TestRepoSizes(t *testing.T) {
	for _, s := range repoCode(t) {
		if n := strings.Count(string(s.text), "\n"); n >= repoMaxFileLines {
			t.Errorf("%s: %d lines, want less than %d", s.path, n, repoMaxFileLines)
		}
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if n := s.line(f.End()) - s.line(f.Pos()) + 1; n >= repoMaxFuncLines {
				t.Errorf("%s: %s has %d lines, want less than %d", s.at(f.Pos()), f.Name.Name, n, repoMaxFuncLines)
			}
		}
	}
}

func TestRepoPackageDocs(t *testing.T) {
	documented := make(map[string]string) // package folder → the file with its doc comment
	folders := make(map[string]bool)
	for _, s := range repoSources(t) {
		if strings.HasSuffix(s.path, "_test.go") || s.generated {
			continue
		}
		folders[s.dir()] = true
		if s.file.Doc == nil || strings.TrimSpace(s.file.Doc.Text()) == "" {
			continue
		}
		if other := documented[s.dir()]; other != "" {
			t.Errorf("%s: %s documents the package already", s.path, other)
		}
		documented[s.dir()] = s.path
	}
	for dir := range folders {
		if want := path.Join(dir, "doc.go"); documented[dir] != want {
			t.Errorf("%s: no package comment in %s", dir, want)
		}
	}
}

func TestRepoExportedNamesAreDocumented(t *testing.T) {
	for _, s := range repoSources(t) {
		if strings.HasSuffix(s.path, "_test.go") || s.generated {
			continue
		}
		for _, d := range s.file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && repoExportedReceiver(d) && d.Doc == nil {
					t.Errorf("%s: %s has no doc comment", s.at(d.Pos()), d.Name.Name)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					for _, name := range repoUndocumented(d, spec) {
						t.Errorf("%s: %s has no doc comment", s.at(spec.Pos()), name)
					}
				}
			}
		}
	}
}

// repoExportedReceiver reports whether f is a function, or a method of an exported type.
func repoExportedReceiver(f *ast.FuncDecl) bool {
	if f.Recv == nil {
		return true
	}
	typ := f.Recv.List[0].Type
	for {
		switch t := typ.(type) {
		case *ast.StarExpr:
			typ = t.X
		case *ast.IndexExpr:
			typ = t.X
		case *ast.IndexListExpr:
			typ = t.X
		case *ast.Ident:
			return t.IsExported()
		default:
			return false
		}
	}
}

// repoUndocumented returns the exported names of spec without a comment. In a group of constants or variables the
// comment of the group serves all; fields count in Config structs, whose comments become docs/configuration.md.
func repoUndocumented(d *ast.GenDecl, spec ast.Spec) (names []string) {
	switch spec := spec.(type) {
	case *ast.ValueSpec:
		if d.Doc != nil || spec.Doc != nil || spec.Comment != nil {
			return nil
		}
		for _, name := range spec.Names {
			if name.IsExported() {
				names = append(names, name.Name)
			}
		}
	case *ast.TypeSpec:
		if spec.Name.IsExported() && spec.Doc == nil && (d.Doc == nil || d.Lparen.IsValid()) {
			names = append(names, spec.Name.Name)
		}
		fields, ok := spec.Type.(*ast.StructType)
		if !ok || !strings.HasSuffix(spec.Name.Name, "Config") {
			return names
		}
		for _, field := range fields.Fields.List {
			for _, name := range field.Names {
				if name.IsExported() && field.Doc == nil && field.Comment == nil {
					names = append(names, spec.Name.Name+"."+name.Name)
				}
			}
		}
	}
	return names
}

func TestRepoNoInitFunctions(t *testing.T) {
	for _, s := range repoCode(t) {
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s: an init function; do it where the thing is built", s.at(f.Pos()))
			}
		}
	}
}

// TestRepoGoStatements asks for a comment at every go statement (what ends it, who waits for it) and bounds their
// number in the HTTP/2 stack.
func TestRepoGoStatements(t *testing.T) {
	var inH2 []string
	for _, s := range repoCode(t) {
		commented := make(map[int]bool) // lines with a comment on them or on a line of its own above
		for _, group := range s.file.Comments {
			commented[s.line(group.Pos())] = true
			before := s.text[:s.fset.Position(group.Pos()).Offset]
			if before = bytes.TrimRight(before, " \t"); len(before) == 0 || before[len(before)-1] == '\n' {
				commented[s.line(group.End())+1] = true
			}
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			g, ok := n.(*ast.GoStmt)
			if !ok {
				return true
			}
			if !commented[s.line(g.Pos())] {
				t.Errorf("%s: a go statement without a comment that says what ends it and who waits for it", s.at(g.Pos()))
			}
			if s.dir() == "tunnel/h2" {
				inH2 = append(inH2, s.at(g.Pos()))
			}
			return true
		})
	}
	if len(inH2) > repoMaxGoInH2 {
		t.Errorf("%d go statements in tunnel/h2, want at most %d: %v", len(inH2), repoMaxGoInH2, inH2)
	}
}

// TestRepoErrorsAreNotCompared finds errors that are told apart by text, by == or by a type assertion, where
// errors.Is and errors.As see through wrapping.
func TestRepoErrorsAreNotCompared(t *testing.T) {
	for _, s := range repoCode(t) {
		ast.Inspect(s.file, func(n ast.Node) bool {
			if what := repoErrorCompared(n); what != "" {
				t.Errorf("%s: %s; use errors.Is or errors.As", s.at(n.Pos()), what)
			}
			return true
		})
	}
}

func repoErrorCompared(n ast.Node) string {
	switch n := n.(type) {
	case *ast.CallExpr:
		if name := repoCallee(n); !strings.HasPrefix(name, "strings.") || name == "strings.TrimPrefix" {
			return ""
		}
		for _, arg := range n.Args {
			if call, ok := arg.(*ast.CallExpr); ok && len(call.Args) == 0 && strings.HasSuffix(repoCallee(call), ".Error") {
				return "an error's text is searched"
			}
		}
	case *ast.BinaryExpr:
		if n.Op != token.EQL && n.Op != token.NEQ || !repoIsErr(n.X) {
			return ""
		}
		// io.EOF from a Read is never wrapped (io.Reader), so comparing is right.
		if right := repoExpr(n.Y); right != "nil" && right != "io.EOF" {
			return "an error is compared with " + right
		}
	case *ast.TypeAssertExpr:
		// Unwrap() []error cannot be asked for otherwise.
		if _, anonymous := n.Type.(*ast.InterfaceType); repoIsErr(n.X) && !anonymous {
			return "an error's type is asserted"
		}
	case *ast.SwitchStmt:
		if n.Tag != nil && repoIsErr(n.Tag) {
			return "a switch compares errors"
		}
	}
	return ""
}

func repoIsErr(e ast.Expr) bool {
	id, ok := e.(*ast.Ident)
	return ok && (id.Name == "err" || strings.HasSuffix(id.Name, "Err"))
}

// repoCallee renders what is called: "fmt.Errorf", "newTable", "x.Error".
func repoCallee(call *ast.CallExpr) string { return repoExpr(call.Fun) }

func repoExpr(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return repoExpr(e.X) + "." + e.Sel.Name
	case *ast.StarExpr:
		return repoExpr(e.X)
	case *ast.IndexExpr:
		return repoExpr(e.X)
	case *ast.ParenExpr:
		return repoExpr(e.X)
	}
	return fmt.Sprintf("%T", e)
}
