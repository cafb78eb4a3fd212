package manifest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// TestMergeKeys: documents with merge keys are to the lab what they are to kubectl, which reads them with
// sigs.k8s.io/yaml.
func TestMergeKeys(t *testing.T) {
	const anchors = "base: &base {a: 1, b: 1}\nother: &other {b: 2, c: 2}\nnested: &nested {<<: *base, d: 3}\n"
	for _, text := range []string{
		"out: {<<: *base}", "out: {<<: *base, a: 9}", "out: {a: 9, <<: *base}", "out: {<<: [*base, *other]}",
		"out: {<<: [*other, *base], c: 9}", "out: {<<: *base, z: 1, <<: *other}", "out: {<<: *nested, b: 9}",
		"out: {<<: {a: 5}, b: 6}", "out: {<<: [{a: 5}, *base]}", "out: {q: {<<: *other}}", "out: {\"<<\": 1}",
		"out: [{<<: *base}, {<<: *base, b: 7}]",
	} {
		docs, problems := parse("f.yaml", []byte(anchors+text))
		if len(problems) > 0 || len(docs) != 1 {
			t.Errorf("%s: %v", text, problems)
			continue
		}
		kubectls, err := yaml.YAMLToJSON([]byte(anchors + text))
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		var got, want any
		if twice, err := json.UnmarshalStrict(docs[0].json, &got); err != nil || len(twice) > 0 {
			t.Errorf("%s: %v %v", docs[0].json, twice, err)
		}
		if err := json.UnmarshalCaseSensitivePreserveInts(kubectls, &want); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: -kubectl +lab\n%s", text, diff)
		}
	}
}

// TestManyMergeKeys: what merge keys bring is bounded before it is worked through.
func TestManyMergeKeys(t *testing.T) {
	var b strings.Builder
	b.WriteString("x0: &x0 {a: 1}\n")
	for i := range 20 {
		fmt.Fprintf(&b, "x%d: &x%d {<<: [*x%d%s]}\n", i+1, i+1, i, strings.Repeat(fmt.Sprintf(", *x%d", i), 8))
	}
	begin := time.Now()
	_, problems := parse("f.yaml", []byte(b.String()))
	if len(problems) != 1 || !strings.Contains(problems[0].Text, "more than 10000 merge keys") {
		t.Errorf("problems %v after %s", problems, time.Since(begin))
	}
}
