package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// Load reads and parses the file. A missing key has its default. An invalid file gives no configuration, only an error
// that lists every problem with key, value and allowed values.
func Load(path string) (Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("read the configuration: %w; it is the key config.yaml of the ConfigMap weft-config", err)
	}
	c, err := Parse(data)
	if err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

// Parse parses the content of the file, as Load does.
func Parse(data []byte) (Config, error) {
	if secondDocument(data) {
		return Config{}, errors.New("more than one YAML document; put all settings into one")
	}
	var errs []error
	doc, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		// A duplicate key leaves the rest readable, so report the other problems in the same error.
		duplicates := err
		if doc, err = yaml.YAMLToJSON(data); err != nil {
			return Config{}, fmt.Errorf("not YAML: %w", err)
		}
		errs = append(errs, duplicateKeys(duplicates)...)
	}
	var values map[string]json.RawMessage
	if err := json.Unmarshal(doc, &values); err != nil {
		return Config{}, fmt.Errorf("%s is not a mapping of keys to values; write for example: tunnelType: geneve",
			abbreviate(doc))
	}
	c := Default()
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if err := c.set(key, values[key]); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 {
		if err := c.check(); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return Config{}, list(errs)
	}
	return c, nil
}

// set parses and stores the value of one key.
func (c *Config) set(key string, raw json.RawMessage) error {
	i := slices.IndexFunc(settings, func(s setting) bool { return s.key == key })
	if i < 0 {
		err := fmt.Errorf("unknown key %q (with value %s); allowed: %s", key, abbreviate(raw), strings.Join(keys(), ", "))
		return withDetail(err, didYouMean(key, keys()))
	}
	s := settings[i]
	if bytes.Equal(raw, []byte("null")) {
		return fmt.Errorf("%s has no value; allowed: %s; leave the key out for the default %s", key, s.allowed,
			s.text(Default()))
	}
	err := s.parse(c, raw)
	if err == nil {
		return nil
	}
	refused := fmt.Errorf("%s: %s is not allowed; allowed: %s", key, abbreviate(raw), s.allowed)
	if errors.As(err, new(*json.UnmarshalTypeError)) {
		return refused // the list of allowed values says more than the name of a Go type
	}
	return withDetail(refused, err)
}

// withDetail appends the detail unless it says no more than "not allowed".
func withDetail(refused, detail error) error {
	if detail == nil || errors.Is(detail, errNotAllowed) {
		return refused
	}
	return fmt.Errorf("%w; %w", refused, detail)
}

func keys() []string {
	out := make([]string, len(settings))
	for i, s := range settings {
		out[i] = s.key
	}
	return out
}

// list is several problems as one error, one on each line.
type list []error

func (l list) Error() string {
	if len(l) == 1 {
		return l[0].Error()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d problems:", len(l))
	for _, err := range l {
		b.WriteString("\n  " + strings.ReplaceAll(err.Error(), "\n", "\n  "))
	}
	return b.String()
}

func (l list) Unwrap() []error { return l }

// duplicateKeys splits the YAML package's error into one for each key.
func duplicateKeys(err error) []error {
	var errs []error
	for line := range strings.Lines(err.Error()) {
		if at, rest, ok := strings.Cut(strings.TrimSpace(line), ": key "); ok {
			key, _, _ := strings.Cut(rest, " already set")
			errs = append(errs, fmt.Errorf("duplicate key %s, second one at %s; keep one", key, at))
		}
	}
	if len(errs) == 0 {
		errs = append(errs, err)
	}
	return errs
}

// secondDocument reports whether another document follows the first; the YAML package would ignore it silently.
func secondDocument(data []byte) bool {
	content := false
	for line := range bytes.Lines(data) {
		text := bytes.TrimRight(line, " \r\n")
		switch {
		case bytes.Equal(text, []byte("---")) || bytes.HasPrefix(text, []byte("--- ")):
			if content {
				return true
			}
			content = len(text) > len("---")
		case len(bytes.TrimSpace(text)) > 0 && bytes.TrimSpace(text)[0] != '#':
			content = true
		}
	}
	return false
}

// abbreviate bounds the length of a value in a message, for example when a whole file was pasted into it.
func abbreviate(raw []byte) string {
	const most = 120
	if s := []rune(string(raw)); len(s) > most {
		return string(s[:most]) + "…"
	}
	return string(raw)
}

// didYouMean suggests the word of the list that is nearest to a misspelled one; nil when none is near.
func didYouMean[T ~string](word T, words []T) error {
	best, least := "", 1+max(1, len(word)/4)
	for _, w := range words {
		d := distance(strings.ToLower(string(word)), strings.ToLower(string(w)))
		if d < least {
			best, least = string(w), d
		}
	}
	if best == "" {
		return nil
	}
	return fmt.Errorf("did you mean %q?", best)
}

// distance is the Levenshtein distance: the number of letters to insert, remove or replace.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
