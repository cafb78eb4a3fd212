//go:build integration

package lab_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/lab/labtest"
)

// external is a pod, and a Service with external addresses.
func external(addrs ...string) string {
	return deployment("web", 1,
		80) + "---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ipFamilyPolicy: RequireDualStack, " +
		"selector: {app: web}, ports: [{port: 80}], " +
		`externalIPs: ["` + strings.Join(addrs, `", "`) + "\"]}\n"
}

// The host outside has a way to each external address, for as long as a Service has the address. A person may have
// removed it before; a way that cannot be removed is a problem, and is tried again.
func TestOutsideRoutes(t *testing.T) {
	addrs := []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "2001:db8::2"}
	dir := labtest.Write(t, map[string]string{"f.yaml": external(addrs...)})
	l := labtest.Up(t, "outside", "-f", dir, "--ip-family=dual", "--nodes=1")
	ways := func() (ways []string) {
		out := l.Run("outside", "sh", "-ec", "ip -4 route show; ip -6 route show")
		for _, addr := range addrs {
			if strings.Contains(out, addr+" via ") {
				ways = append(ways, addr)
			}
		}
		return ways
	}
	become := func(want []string, addrs ...string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "f.yaml"), []byte(external(addrs...)), 0o644); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, 20*time.Second, func() error {
			if s := l.Status(); s.Problem != "" {
				return fmt.Errorf("the lab has a problem: %s", s.Problem)
			}
			if got := ways(); fmt.Sprint(got) != fmt.Sprint(want) {
				return fmt.Errorf("ways to %v, want %v", got, want)
			}
			return nil
		})
	}
	if got := ways(); fmt.Sprint(got) != fmt.Sprint(addrs) {
		t.Fatalf("ways to %v, want %v", got, addrs)
	}
	l.Run("outside", "ip", "route", "del", "192.0.2.2")
	become([]string{"192.0.2.1", "192.0.2.3", "2001:db8::2"}, "192.0.2.1", "192.0.2.3", "2001:db8::2")

	// The program that removes them fails, on that host alone.
	l.Run("outside", "sh", "-ec", `mount --bind /bin/false "$(command -v ip)"`)
	if err := os.WriteFile(filepath.Join(dir, "f.yaml"), []byte(external("192.0.2.3")), 0o644); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 20*time.Second, func() error {
		if s := l.Status(); !strings.Contains(s.Problem, "on node outside: ip ") {
			return fmt.Errorf("routes cannot be removed, and the problem is %q", s.Problem)
		}
		return nil
	})
	l.Run("outside", "sh", "-ec", `umount "$(command -v ip)"`)
	become([]string{"192.0.2.3"}, "192.0.2.3")
}
