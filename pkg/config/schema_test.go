package config

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/weft-cni/weft/internal/testing/golden"
)

// chartSchema is the schema of the chart's values, less that of config, which the table of settings gives.
const chartSchema = `{
  "$schema": "http://json-schema.org/draft-07/schema#",
  "title": "Values of the chart weft",
  "type": "object",
  "additionalProperties": false,
  "properties": {
    "global": {"type": "object", "description": "What Helm gives to charts that others depend on."},
    "image": {
      "type": "object", "additionalProperties": false,
      "properties": {
        "repository": {"type": "string", "minLength": 1},
        "tag": {"type": "string"},
        "digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
        "pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]}
      }
    },
    "imagePullSecrets": {"type": "array", "items": {
      "type": "object", "additionalProperties": false, "required": ["name"], "properties": {"name": {"type": "string"}}}},
    "cni": {
      "type": "object", "additionalProperties": false,
      "properties": {
        "binDir": {"type": "string", "pattern": "^/"},
        "confDir": {"type": "string", "pattern": "^/"}
      }
    },
    "tolerations": {"type": "array", "items": {"type": "object"}},
    "nodeSelector": {"type": "object", "additionalProperties": {"type": "string"}},
    "podAnnotations": {"type": "object", "additionalProperties": {"type": "string"}},
    "resources": {"type": "object"},
    "updateStrategy": {
      "type": "object", "additionalProperties": false,
      "properties": {"maxUnavailable": {"type": ["integer", "string"]}}
    },
    "monitoring": {
      "type": "object", "additionalProperties": false,
      "properties": {
        "podMonitor": {"type": "boolean"},
        "prometheusRule": {"type": "boolean"},
        "interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m)$"}
      }
    },
    "namespace": {"type": "object", "additionalProperties": false, "properties": {"create": {"type": "boolean"}}}
  }
}`

// settingSchema is what JSON Schema can say of a setting: its type, and the values if they are few.
func settingSchema(s setting, comment string) map[string]any {
	schema := map[string]any{"description": strings.Join(strings.Fields(comment), " "), "default": s.value(Default())}
	var words []any
	for word := range strings.SplitSeq(s.allowed, ", ") {
		raw, err := json.Marshal(word)
		if err != nil || s.parse(new(Config), raw) != nil {
			words = nil
			break
		}
		words = append(words, word)
	}
	switch {
	case words != nil:
		schema["enum"] = words
	case strings.HasPrefix(s.text(Default()), "["):
		schema["type"], schema["items"] = "array", map[string]any{"type": "string"}
	case strings.HasPrefix(s.text(Default()), `"`):
		schema["type"] = "string"
	case s.text(Default()) == "true" || s.text(Default()) == "false":
		schema["type"] = "boolean"
	default:
		schema["type"] = "integer"
	}
	return schema
}

// TestChartSchema: the chart's values.schema.json has the settings of the table.
func TestChartSchema(t *testing.T) {
	var schema map[string]any
	if err := json.Unmarshal([]byte(chartSchema), &schema); err != nil {
		t.Fatal(err)
	}
	comments, of := fieldComments(t), map[string]any{}
	for i, s := range settings {
		of[s.key] = settingSchema(s, comments[i])
	}
	properties, ok := schema["properties"].(map[string]any)
	if !ok {
		t.Fatal("the schema has no properties")
	}
	properties["config"] = map[string]any{
		"type": "object", "additionalProperties": false, "properties": of,
		"description": "Settings of the agent: the content of config.yaml.",
	}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", " ")
	if err := encoder.Encode(schema); err != nil {
		t.Fatal(err)
	}
	golden.File(t, "../../deploy/helm/weft/values.schema.json", text.String())
}
