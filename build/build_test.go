package build

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// requirement is a line of a go.mod as `go mod edit -json` prints it.
type requirement struct {
	Path, Version string
	Indirect      bool
}

func requirements(t *testing.T, file string) []requirement {
	t.Helper()
	out, err := exec.Command("go", "mod", "edit", "-json", file).Output()
	if err != nil {
		t.Fatalf("read %s: %v", file, err)
	}
	var mod struct{ Require []requirement }
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	return mod.Require
}

func version(t *testing.T, file, module string) string {
	t.Helper()
	for _, r := range requirements(t, file) {
		if r.Path == module {
			return r.Version
		}
	}
	t.Fatalf("%s does not require %s", file, module)
	return ""
}

func read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// docs/dependencies.md names every direct dependency of the product and, of the workshop, those that the product does
// not have; it says why, and names no other.
func TestDependenciesAreExplained(t *testing.T) {
	known := map[string]bool{"github.com/weft-cni/weft": true}
	for _, tc := range []struct{ heading, file string }{{"## The main module", "../go.mod"},
		{"## The workshop", "../test/go.mod"}} {
		_, rest, _ := strings.Cut(read(t, "../docs/dependencies.md"), tc.heading)
		table, _, ok := strings.Cut(rest, "\n## ")
		if !ok {
			t.Fatalf("docs/dependencies.md has lost the heading %q or the one after it", tc.heading)
		}
		var explained, required []string
		for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| .+ \\|$").FindAllStringSubmatch(table, -1) {
			explained = append(explained, row[1])
		}
		for _, r := range requirements(t, tc.file) {
			if !r.Indirect && !known[r.Path] {
				required = append(required, r.Path)
				known[r.Path] = true
			}
		}
		slices.Sort(required)
		if d := cmp.Diff(required, explained); d != "" {
			t.Errorf("docs/dependencies.md is not what %s requires directly, sorted (-go.mod +docs):\n%s", tc.file, d)
		}
	}
}

// The workshop tests the product as it is built: with the same versions of everything.
func TestWorkshopHasTheProductsVersions(t *testing.T) {
	product := map[string]string{}
	for _, r := range requirements(t, "../go.mod") {
		product[r.Path] = r.Version
	}
	for _, r := range requirements(t, "../test/go.mod") {
		if want := product[r.Path]; want != "" && r.Version != want {
			t.Errorf("test/go.mod requires %s %s, go.mod %s", r.Path, r.Version, want)
		}
	}
}

// The plugins in the image are those whose library the agent uses.
func TestPluginsHaveOneVersion(t *testing.T) {
	const module = "github.com/containernetworking/plugins"
	if lib, image := version(t, "../go.mod", module), version(t, "plugins/go.mod", module); lib != image {
		t.Errorf("%s is %s in go.mod and %s in build/plugins/go.mod", module, lib, image)
	}
}

func TestLinterIsTheOneItsConfigurationIsFor(t *testing.T) {
	want := fmt.Sprintf("# golangci-lint %s, ", version(t, "tools/go.mod", "github.com/golangci/golangci-lint/v2"))
	if !strings.HasPrefix(read(t, "../.golangci.yml"), want) {
		t.Errorf(".golangci.yml does not begin with %q", want)
	}
}

// The Dockerfile installs what the image builder looks for, and starts what it starts.
func TestDockerfileBuildsTheSameImage(t *testing.T) {
	dockerfile, contents := read(t, "Dockerfile"), read(t, "../test/image/contents.go")
	programs := regexp.MustCompile(`\{"[a-z-]+", "([a-z-]+)"\}`).FindAllStringSubmatch(contents, -1)
	if len(programs) == 0 {
		t.Fatal("no programs found in test/image/contents.go")
	}
	for _, program := range programs {
		if !strings.Contains(dockerfile, " "+program[1]) {
			t.Errorf("the Dockerfile does not install %s", program[1])
		}
	}
	for _, want := range []string{
		"go run -C test ./image -dir /layers ",
		"COPY --from=build /layers/system /\n",
		"COPY --from=build /layers/weft /\n",
		fmt.Sprintf("ENTRYPOINT [%q]\n", BinDir+"/weft-agent"),
		"-t " + Image + " .\n",
	} {
		if !strings.Contains(dockerfile, want) {
			t.Errorf("the Dockerfile does not have %q", want)
		}
	}
}
