//go:build integration

package build

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// database is a vulnerability database with one entry, about a function of a module before a version (OSV, and the
// index of https://go.dev/doc/security/vuln/database).
func database(t *testing.T, module, pkg, symbol, fixed string) string {
	t.Helper()
	const id, modified = "GO-2026-9999", "2026-01-01T00:00:00Z"
	type object = map[string]any
	type list = []object
	dir := t.TempDir()
	for file, content := range map[string]any{
		"index/db.json":      object{"modified": modified},
		"index/modules.json": list{{"path": module, "vulns": list{{"id": id, "modified": modified, "fixed": fixed}}}},
		"index/vulns.json":   list{{"id": id, "modified": modified}},
		"ID/" + id + ".json": object{
			"schema_version": "1.3.1", "id": id, "modified": modified, "published": modified, "summary": "A test's vulnerability",
			"details": "It is not real.", "database_specific": object{"url": "https://example.com/" + id},
			"affected": list{{
				"package":            object{"name": module, "ecosystem": "Go"},
				"ranges":             list{{"type": "SEMVER", "events": list{{"introduced": "0"}, {"fixed": fixed}}}},
				"ecosystem_specific": object{"imports": list{{"path": pkg, "symbols": []string{symbol}}}},
			}},
		},
	} {
		text, err := json.Marshal(content)
		path := filepath.Join(dir, file)
		if err := errors.Join(err, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, text, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return "file://" + dir
}

// TestVulnerabilities: make vuln tells what is reached from what is not, and from a database that cannot be read.
func TestVulnerabilities(t *testing.T) {
	const module = "golang.org/x/term"
	for name, tc := range map[string]struct {
		database string
		code     int
		output   string
	}{
		"reached":     {database(t, module, module, "IsTerminal", "99.0.0"), 1, "GO-2026-9999"},
		"not reached": {database(t, module, module, "ReadPassword", "99.0.0"), 0, "No vulnerabilities found"},
		"fixed":       {database(t, module, module, "IsTerminal", "0.1.0"), 0, "No vulnerabilities found"},
		"unreachable": {"file:///nonexistent", 2, "VULNDB=file:///DIR"},
	} {
		cmd := exec.Command("./vuln.sh", "./internal/terminal")
		cmd.Env = append(os.Environ(), "VULNDB="+tc.database)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Fatal(err)
		}
		if code := cmd.ProcessState.ExitCode(); code != tc.code || !strings.Contains(string(out), tc.output) {
			t.Errorf("%s: exit code %d, want %d and %q in\n%s", name, code, tc.code, tc.output, out)
		}
	}
}
