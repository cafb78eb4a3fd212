package conformance

import (
	"bufio"
	"cmp"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

// unfinished is the failure of a test that has no result.
const unfinished = "the run ended before it did"

// ClusterNetworkPolicy is the focus that stands for another suite: that of network-policy-api.
const ClusterNetworkPolicy = "clusternetworkpolicy"

var (
	// result is how `go test -v` ends a test; a subtest's name follows its parent's.
	result = regexp.MustCompile(`^ *--- (PASS|FAIL|SKIP): [^/ ]+/([^/ ]+)(?:/(\S+))? \((\S+)s\)$`)
	// run is how it begins one, or says whose lines follow.
	run = regexp.MustCompile(`^=== (?:RUN|NAME) +[^/ ]+(?:/([^/ ]+)(?:/(\S+))?)?$`)
)

// ReadGoTest returns the subtests of the one test whose output by `go test -v` the file is, ordered as Read orders
// specs. A subtest of a subtest is part of it. One that has begun and not ended has failed.
func ReadGoTest(file string) ([]Spec, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read the output of the tests: %w", err)
	}
	defer f.Close()
	var specs []Spec
	ended := map[string]string{} // PASS, FAIL or SKIP
	find := func(name string) *Spec {
		i := slices.IndexFunc(specs, func(s Spec) bool { return s.Name == name })
		if i < 0 {
			i = len(specs)
			specs = append(specs, Spec{Name: name, Failure: unfinished})
		}
		return &specs[i]
	}
	said := map[string][]string{}   // by a test, or a part of it
	failed := map[string][]string{} // by a test: the parts
	var current, part string
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if m := run.FindStringSubmatch(line); m != nil {
			if current, part = m[1], m[2]; current != "" {
				find(current)
			}
			continue
		}
		m := result.FindStringSubmatch(line)
		switch {
		case m == nil:
			said[current+part] = append(said[current+part], strings.TrimSpace(line))
			continue
		case m[3] != "" && m[1] == "FAIL":
			failed[m[2]] = append(failed[m[2]], m[3])
		case m[3] != "": // told with its test
		default:
			s := find(m[2])
			ended[s.Name], s.Failure = m[1], ""
			if s.Took, err = time.ParseDuration(m[4] + "s"); err != nil {
				return nil, fmt.Errorf("read the output of the tests: %q: %w", line, err)
			}
		}
	}
	for i := range specs {
		s := &specs[i]
		switch ended[s.Name] {
		case "SKIP":
			s.Skipped = strings.Join(said[s.Name], " ")
		case "FAIL":
			// A test that fails of itself says why; else its parts do.
			all := said[s.Name]
			if len(failed[s.Name]) > 0 {
				all = nil
			}
			for _, part := range failed[s.Name] {
				all = append(append(all, part), said[s.Name+part]...)
			}
			s.Failure = cmp.Or(strings.Join(all, "\n"), "no reason given")
		}
	}
	slices.SortFunc(specs, compare)
	return specs, lines.Err()
}
