package tools

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/google/jsonschema-go/jsonschema"

	"countersign/action"
	"countersign/audit"
)

type diffManifestInput struct {
	Manifest  string `json:"manifest" jsonschema:"YAML or JSON, one or several documents"`
	Namespace string `json:"namespace,omitempty" jsonschema:"for objects that name none"`
	Force     bool   `json:"force,omitempty" jsonschema:"as of apply_manifest"`
}

func diffManifest() *Tool {
	const applies = "apply_manifest"
	scopes := []action.Scope{{Verbs: []string{action.Get}}}
	return define(Tool{
		Name:        "diff_manifest",
		Title:       "Compare a manifest with the cluster",
		Description: "Shows what apply_manifest would change and what policy would say. Changes nothing.",
		Scopes:      scopes,
		Reads:       scopes,
	}, func(s *jsonschema.Schema) {
		s.Properties["manifest"].MaxLength = jsonschema.Ptr(4 * maxManifest)
	}, func(ctx context.Context, r Reader, cluster string, in diffManifestInput) (Call, error) {
		plan, err := planManifest(ctx, r, cluster, in.Manifest, in.Namespace, action.Action{
			Cluster: cluster, Verb: action.Patch,
			Options: action.Options{PatchType: action.ApplyPatch, FieldManager: FieldManager, Force: in.Force},
		})
		if err != nil {
			return Call{}, err
		}
		parts := make([]string, len(plan.Actions))
		for i, a := range plan.Actions {
			if err := checkNames(a); err != nil {
				return Call{}, err
			}
			forecast, err := r.Forecast(ctx, applies, a)
			switch {
			case err != nil && (len(plan.Actions) == 1 || unanswered(err)):
				return Call{}, err
			case err != nil: // the others can still be compared
				parts[i] = fmt.Sprintf("%s\n   cannot be tried: %s\n", a, clip(audit.MaskText(err.Error()), maxMessage))
			default:
				parts[i] = forecastText(a, forecast)
			}
		}
		return Call{Answer: cutEnd(strings.Join(parts, "\n"), "give fewer objects")}, nil
	}, nil)
}

// unanswered reports whether it was not the API server or policy that said no.
func unanswered(err error) bool {
	var network net.Error
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrNoCluster) || errors.As(err, &network)
}

// maxForecast bounds what is said of one object, so that a large one leaves room for others.
const maxForecast = 16 << 10

func forecastText(a action.Action, f Forecast) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", a, verdictText(f.Verdict))
	switch {
	case !f.Asked:
		b.WriteString("   not compared\n")
	case len(f.Diff) == 0:
		b.WriteString("   nothing would change\n")
	}
	for _, c := range f.Diff {
		path := c.Path
		if path == "" && c.Op == "add" {
			path = "(a new object)"
		}
		fmt.Fprintf(&b, "   %s\n", path)
		if c.Op != "add" {
			writeValue(&b, "-", c.Old)
		}
		if c.Op != "remove" {
			writeValue(&b, "+", c.New)
		}
	}
	return cutAt(b.String(), maxForecast, "give this object alone, or fewer fields of it")
}

// maxSide bounds each side of one difference, in bytes.
const maxSide = 1 << 10

// writeValue writes one value of a difference as JSON, a sign before each line.
func writeValue(b *strings.Builder, sign string, value any) {
	var text strings.Builder
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if enc.Encode(value) != nil {
		text.WriteString("(unreadable)\n")
	}
	shown, note := text.String(), ""
	if len(shown) > maxSide {
		note = fmt.Sprintf("   (the first %d of %d bytes)\n", maxSide, len(shown))
		shown = strings.ToValidUTF8(shown[:maxSide], "") + "\n"
	}
	for line := range strings.Lines(shown) {
		b.WriteString("   " + sign + " " + line)
	}
	b.WriteString(note)
}

// verdictText says what policy would answer.
func verdictText(v Verdict) string {
	text := map[string]string{
		"allow": "policy allows it", "deny": "policy denies it", "require_approval": "policy asks people for approval",
		"": "policy's answer hangs on what the object holds",
	}[v.Effect]
	if len(v.Approvers) > 0 {
		text += ": " + strings.Join(v.Approvers, " and ")
	}
	if len(v.Rules) > 0 {
		text += " (rule " + strings.Join(v.Rules, ", ") + ")"
	}
	if v.Reason != "" && v.Effect == "deny" {
		text += ": " + v.Reason
	}
	return text
}
