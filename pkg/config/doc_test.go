package config

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"testing"

	"github.com/weft-cni/weft/internal/testing/golden"
)

// TestDocumentation: docs/configuration.md is generated from the comments of Config's fields and the table of keys.
func TestDocumentation(t *testing.T) {
	golden.File(t, "../../docs/configuration.md", string(document(t)))
}

const preamble = `<!-- Made from pkg/config by: go test ./pkg/config -run TestDocumentation -update -->
# Configuration

Weft's settings are the key ` + "`config.yaml`" + ` of the ConfigMap ` + "`weft-config`" + ` in the namespace ` +
	"`weft-system`" + `:

    apiVersion: v1
    kind: ConfigMap
    metadata:
      name: weft-config
      namespace: weft-system
    data:
      config.yaml: |
        tunnelType: vxlan
        mtu: 1400

A key that is left out has its default. An unknown key, a duplicate key or a value that is not allowed stops the
agent at its start, with a message that names the key, the value and what is allowed; nothing of such a file is used.
Keys whose changes are *live* take effect in running agents when the kubelet has refreshed the mounted file, which takes
up to a minute or two. Other changes need ` + "`kubectl -n weft-system rollout restart daemonset/weft-agent`" + `, which
interrupts no connection.
`

func document(t *testing.T) []byte {
	t.Helper()
	comments := fieldComments(t)
	var b bytes.Buffer
	b.WriteString(preamble)
	for i, s := range settings {
		if comments[i] == "" {
			t.Errorf("the field of %s has no comment", s.key)
		}
		change := "needs a restart of the agent"
		if s.live {
			change = "live"
		}
		fmt.Fprintf(&b, "\n## `%s`\n%s\n\n* Default: `%s`\n* Allowed: %s\n* A change: %s\n",
			s.key, comments[i], s.text(Default()), s.allowed, change)
	}
	return b.Bytes()
}

// fieldComments returns the comments of Config's fields, in order.
func fieldComments(t *testing.T) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "config.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	var comments []string
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok || spec.Name.Name != "Config" {
			return true
		}
		if structure, ok := spec.Type.(*ast.StructType); ok {
			for _, field := range structure.Fields.List {
				comments = append(comments, strings.TrimSpace(field.Doc.Text()))
			}
		}
		return false
	})
	if len(comments) != len(settings) {
		t.Fatalf("%d fields have comments, of %d keys", len(comments), len(settings))
	}
	return comments
}
