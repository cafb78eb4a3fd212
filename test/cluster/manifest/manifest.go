// Package manifest changes settings in Weft's installation manifest, the way a user edits the ConfigMap in it. It is
// pure: text in, text out.
package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// Where Weft's settings are in its manifest.
const (
	Namespace = "weft-system"
	configMap = "weft-config"
	configKey = "config.yaml"
)

var documentEnd = regexp.MustCompile(`(?m)^---[ \t]*(#.*)?\n`)

// Configure sets keys of the settings in the ConfigMap weft-config to values. A key that the settings have, or name in
// a comment line as `# key: value`, is replaced in place, and others are appended. All other documents stay as they
// are.
func Configure(manifest []byte, settings map[string]string) ([]byte, error) {
	documents := documentEnd.Split(string(manifest), -1)
	found := 0
	for i, text := range documents {
		var object map[string]any
		if err := yaml.UnmarshalStrict([]byte(text), &object); err != nil {
			return nil, fmt.Errorf("configure Weft's manifest: document %d: %w", i+1, err)
		}
		metadata, _ := object["metadata"].(map[string]any)
		if object["kind"] != "ConfigMap" || metadata["name"] != configMap {
			continue
		}
		found++
		data, _ := object["data"].(map[string]any)
		config, ok := data[configKey].(string)
		if !ok {
			return nil, fmt.Errorf("configure Weft's manifest: ConfigMap %s has no %s", configMap, configKey)
		}
		changed, err := set(config, settings)
		if err != nil {
			return nil, fmt.Errorf("configure Weft's manifest: ConfigMap %s: %w", configMap, err)
		}
		data[configKey] = changed
		out, err := yaml.Marshal(object)
		if err != nil {
			return nil, fmt.Errorf("configure Weft's manifest: ConfigMap %s: %w", configMap, err)
		}
		documents[i] = string(out)
	}
	if found != 1 {
		return nil, fmt.Errorf("configure Weft's manifest: it has %d ConfigMaps %s, want one", found, configMap)
	}
	var out bytes.Buffer
	for i, text := range documents {
		if i > 0 {
			out.WriteString("---\n")
		}
		out.WriteString(text)
	}
	return out.Bytes(), nil
}

// set replaces or appends top-level scalar keys of a YAML text, keeping its comments.
func set(config string, settings map[string]string) (string, error) {
	lines := strings.Split(strings.TrimRight(config, "\n"), "\n")
	if config == "" {
		lines = nil
	}
	for _, key := range slices.Sorted(maps.Keys(settings)) {
		value, err := yaml.Marshal(settings[key])
		if err != nil {
			return "", fmt.Errorf("key %s: %w", key, err)
		}
		line := key + ": " + strings.TrimSpace(string(value))
		at := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, key+":") })
		if at < 0 {
			commented := regexp.MustCompile(`^#\s?` + regexp.QuoteMeta(key) + `:`)
			at = slices.IndexFunc(lines, commented.MatchString)
		}
		if at < 0 {
			lines = append(lines, line)
		} else {
			lines[at] = line
		}
	}
	text := strings.Join(lines, "\n") + "\n"
	var check map[string]any
	if err := yaml.UnmarshalStrict([]byte(text), &check); err != nil {
		return "", fmt.Errorf("setting %v does not give valid YAML: %w", slices.Sorted(maps.Keys(settings)), err)
	}
	if len(check) == 0 && len(settings) > 0 {
		return "", errors.New("the settings got lost")
	}
	return text, nil
}
