package tools

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/google/jsonschema-go/jsonschema"
	yamlnode "go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/api/validate/content"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"countersign/action"
	"countersign/strictyaml"
)

const (
	// FieldManager owns the fields that the tools set
	// (Kubernetes, Server-Side Apply, "Field management").
	FieldManager = "countersign"
	// maxManifest is what the API server's own store takes of one object, rounded down.
	maxManifest = 1 << 20
	// maxObjects bounds what one call may touch.
	maxObjects = 50
	maxReason  = 500
)

var reasonLimit = maxReason

func limitReason(s *jsonschema.Schema) {
	for _, name := range payloadArguments {
		if payload := s.Properties[name]; payload != nil {
			payload.MaxLength = jsonschema.Ptr(4 * maxManifest) // who reads it says in bytes what is too much
		}
	}
	s.Properties["reason"].MaxLength = &reasonLimit
}

type applyManifestInput struct {
	Manifest  string `json:"manifest" jsonschema:"YAML or JSON, one or several documents, at most 1 MiB"`
	Namespace string `json:"namespace,omitempty" jsonschema:"for objects that name none"`
	Force     bool   `json:"force,omitempty" jsonschema:"take over fields that another manager owns"`
	Reason    string `json:"reason,omitempty" jsonschema:"why; approvers see it as your words"`
}

func applyManifest() *Tool {
	return define(Tool{
		Name:        "apply_manifest",
		Title:       "Apply a manifest",
		Description: "Creates or changes objects by server-side apply. All are tried as dry runs before the first is applied; then they are applied in order, until one fails.",
		Scopes:      []action.Scope{{Verbs: []string{action.Create, action.Patch}}},
	}, limitReason, func(ctx context.Context, r Reader, cluster string, in applyManifestInput) (Call, error) {
		plan, err := planManifest(ctx, r, cluster, in.Manifest, in.Namespace, action.Action{
			Verb:    action.Patch,
			Options: action.Options{PatchType: action.ApplyPatch, FieldManager: FieldManager, Force: in.Force},
		})
		return Call{Plan: plan, Reason: in.Reason}, err
	}, renderChange("applied"))
}

type createResourceInput struct {
	Manifest  string `json:"manifest" jsonschema:"YAML or JSON, one or several documents, at most 1 MiB"`
	Namespace string `json:"namespace,omitempty" jsonschema:"for objects that name none"`
	Reason    string `json:"reason,omitempty" jsonschema:"why; approvers see it as your words"`
}

func createResource() *Tool {
	return define(Tool{
		Name:        "create_resource",
		Title:       "Create resources",
		Description: "Creates the objects of a manifest; one that exists already is an error. The way to make an object with generateName.",
		Scopes:      []action.Scope{{Verbs: []string{action.Create}}},
	}, limitReason, func(ctx context.Context, r Reader, cluster string, in createResourceInput) (Call, error) {
		plan, err := planManifest(ctx, r, cluster, in.Manifest, in.Namespace, action.Action{
			Verb:    action.Create,
			Options: action.Options{FieldManager: FieldManager},
		})
		return Call{Plan: plan, Reason: in.Reason}, err
	}, renderChange("created"))
}

// planManifest makes one Action of each object of a manifest. request is what
// all of them have in common, namespace is for those that name none.
func planManifest(ctx context.Context, r Resolver, cluster, manifest, namespace string, request action.Action) (action.Plan, error) {
	objects, err := parseManifest(manifest)
	if err != nil {
		return action.Plan{}, err
	}
	var plan action.Plan
	for i, object := range objects {
		a, err := objectAction(ctx, r, cluster, namespace, object, request)
		if err != nil {
			return action.Plan{}, fmt.Errorf("manifest, object %d: %w", i+1, err)
		}
		for n, earlier := range plan.Actions {
			// Each is previewed against the object as it is now, so what two of
			// them do together is what nobody has seen.
			if a.Name != "" && earlier.Resource.GroupResource() == a.Resource.GroupResource() && earlier.Namespace == a.Namespace && earlier.Name == a.Name {
				return action.Plan{}, BadArgument("manifest, objects %d and %d are the same %s %s: write it once", n+1, i+1, a.Resource.Kind, a.Name)
			}
		}
		plan.Actions = append(plan.Actions, a)
	}
	return plan, nil
}

func objectAction(ctx context.Context, r Resolver, cluster, namespaceArgument string, object map[string]any, request action.Action) (action.Action, error) {
	done := "applied"
	if request.Verb == action.Create {
		done = "created"
	}
	apiVersion, _ := object["apiVersion"].(string)
	kind, _ := object["kind"].(string)
	if apiVersion == "" || kind == "" {
		return action.Action{}, BadArgument("apiVersion and kind are needed")
	}
	resource, err := r.Resolve(ctx, cluster, apiVersion, kind)
	if err != nil {
		return action.Action{}, err
	}
	meta, ok := object["metadata"].(map[string]any)
	if !ok {
		return action.Action{}, BadArgument("metadata.name is needed")
	}
	if _, found := meta["managedFields"]; found {
		return action.Action{}, BadArgument("metadata.managedFields cannot be %s: leave it out", done)
	}
	if _, found := object["status"]; found {
		// What controllers report is left out of every diff, so nobody could see it.
		return action.Action{}, BadArgument("status cannot be %s: leave it out", done)
	}
	name, err := objectName(meta, request.Verb)
	if err != nil {
		return action.Action{}, err
	}
	var namespace string
	if value, found := meta["namespace"]; found {
		if namespace, ok = value.(string); !ok {
			return action.Action{}, BadArgument("metadata.namespace is not text: write it in quotes")
		}
	}
	which := strings.TrimSpace(kind + " " + name)
	switch {
	case !resource.Namespaced && namespace != "":
		return action.Action{}, BadArgument("%s does not live in a namespace, but the manifest names %q", which, namespace)
	case resource.Namespaced && namespace != "" && namespaceArgument != "" && namespace != namespaceArgument:
		return action.Action{}, BadArgument("the manifest says namespace %q and the argument says %q: make them agree", namespace, namespaceArgument)
	case resource.Namespaced && namespace == "":
		if namespace = namespaceArgument; namespace == "" {
			return action.Action{}, BadArgument("%s needs a namespace: write it in the manifest or give the namespace argument", which)
		}
		meta["namespace"] = namespace
	}
	a := request
	a.Resource, a.Namespace, a.Name, a.Body = resource, namespace, name, object
	return a, nil
}

// maxPrefix leaves room for the five characters that the API server adds.
const maxPrefix = maxName - 5

// objectName is the name in an object's metadata. It is empty for one whose
// name is to be generated, which only a creation can ask for.
func objectName(meta map[string]any, verb string) (string, error) {
	name, ok := meta["name"].(string)
	if !ok && meta["name"] != nil {
		return "", BadArgument("metadata.name is not text: write it in quotes")
	}
	if verb != action.Create {
		if name == "" {
			return "", BadArgument("metadata.name is needed; generateName cannot be applied: create_resource takes it")
		}
		return name, nil
	}
	prefix, ok := meta["generateName"].(string)
	switch {
	case !ok && meta["generateName"] != nil:
		return "", BadArgument("metadata.generateName is not text: write it in quotes")
	case name == "" && prefix == "":
		return "", BadArgument("metadata.name or metadata.generateName is needed")
	case name != "" && prefix != "":
		return "", BadArgument("metadata has a name and a generateName: leave generateName out for an object of this name, or name for one whose name is made up")
	case len(prefix) > maxPrefix:
		return "", BadArgument("metadata.generateName has %d bytes; at most %d are taken", len(prefix), maxPrefix)
	}
	if wrong := content.IsPathSegmentPrefix(prefix); len(wrong) > 0 {
		return "", BadArgument("metadata.generateName %q %s", prefix, strings.Join(wrong, ", "))
	}
	return name, nil
}

// parseManifest reads a manifest as the API server would: YAML 1.1 scalars,
// duplicate keys refused. Lists are taken apart into single objects.
func parseManifest(text string) ([]map[string]any, error) {
	if len(text) > maxManifest {
		return nil, BadArgument("the manifest is %d bytes; %d is the most that is taken: give the objects in several calls", len(text), maxManifest)
	}
	reader := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(text)))
	var objects []map[string]any
	for n := 1; ; n++ {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, BadArgument(`manifest, document %d: a line begins with "---" and goes on: write "---" on a line of its own`, n)
		}
		if len(bytes.TrimSpace(document)) == 0 {
			continue
		}
		value, err := decodeDocument(document)
		if err != nil {
			return nil, BadArgument("manifest, document %d %v", n, err)
		}
		if value == nil {
			continue // only comments
		}
		object, ok := value.(map[string]any)
		if !ok {
			return nil, BadArgument("manifest, document %d is not an object", n)
		}
		if objects, err = flatten(objects, object, 0); err != nil {
			return nil, BadArgument("manifest, document %d: %v", n, err)
		}
		if len(objects) > maxObjects {
			return nil, BadArgument("the manifest holds more than %d objects: give them in several calls", maxObjects)
		}
	}
	if len(objects) == 0 {
		return nil, BadArgument("the manifest holds no object")
	}
	return objects, nil
}

// decodeDocument reads one document: JSON as JSON, because YAML does not know
// all of its escapes, and everything else as YAML.
func decodeDocument(document []byte) (value any, err error) {
	if strict, err := kjson.UnmarshalStrict(document, &value); err == nil {
		if len(strict) > 0 {
			return nil, fmt.Errorf("does not parse: %.200s", errors.Join(strict...).Error())
		}
		return value, nil
	}
	if err := checkDocument(document); err != nil {
		return nil, err
	}
	data, err := yaml.YAMLToJSONStrict(document)
	if err != nil {
		return nil, fmt.Errorf("does not parse: %s", parseError(err))
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &value); err != nil {
		return nil, fmt.Errorf("does not parse: %s", parseError(err))
	}
	return value, nil
}

var (
	atLine = regexp.MustCompile(`line \d+`)
	// harmless are the parts of a YAML error that repeat no value.
	harmless = regexp.MustCompile(`key "[^"]{1,100}" already set in map|did not find expected [a-z '<>-]+|could not find expected '.'|` +
		`mapping values are not allowed in this context|found character that cannot start any token|unknown anchor|excessive aliasing|value contains itself|found incompatible YAML document|invalid map key|unsupported value`)
)

// parseError says where a manifest does not parse and, where that repeats
// nothing of it, why: what stands there may be a Secret's value.
func parseError(err error) string {
	text := err.Error()
	words := strings.Join(slices.Compact(harmless.FindAllString(text, 5)), "; ")
	if words == "" {
		words = "not valid YAML"
	}
	if line := atLine.FindString(text); line != "" {
		return line + ": " + words
	}
	return words
}

// maxUnfolded bounds a document with its aliases written out.
const maxUnfolded = 4 * maxManifest

// checkDocument refuses what the YAML decoder would not. It bounds how many
// aliases there are, but not how long what they repeat is; and it leaves out a
// second document that begins in a way that the reader does not split at.
func checkDocument(document []byte) error {
	suspect := func(mark string) bool { return bytes.Contains(document, []byte(mark)) }
	if !suspect("&") && !suspect("...") && !suspect("---") {
		return nil
	}
	decoder := yamlnode.NewDecoder(bytes.NewReader(document))
	var node, second yamlnode.Node
	if err := decoder.Decode(&node); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("does not parse: %s", parseError(err))
	}
	if strictyaml.Unfolded(&node, maxUnfolded) > maxUnfolded {
		return fmt.Errorf("unfolds to more than %d bytes: write it without so many aliases", maxUnfolded)
	}
	if !errors.Is(decoder.Decode(&second), io.EOF) {
		return errors.New(`holds more than one: write "---" on a line of its own between them`)
	}
	return nil
}

func flatten(objects []map[string]any, object map[string]any, depth int) ([]map[string]any, error) {
	items, isList := object["items"].([]any)
	if kind, _ := object["kind"].(string); !isList || !strings.HasSuffix(kind, "List") {
		return append(objects, object), nil
	}
	if depth > 3 {
		return nil, errors.New("lists within lists within lists: write the objects one after the other")
	}
	for _, item := range items {
		object, ok := item.(map[string]any)
		if !ok {
			return nil, errors.New("a list holds something that is not an object")
		}
		var err error
		if objects, err = flatten(objects, object, depth+1); err != nil {
			return nil, err
		}
	}
	return objects, nil
}

type deleteResourceInput struct {
	Kind               string `json:"kind" jsonschema:"kind, plural or short name"`
	Name               string `json:"name"`
	Namespace          string `json:"namespace,omitempty"`
	Propagation        string `json:"propagation,omitempty" jsonschema:"what happens to dependents (default Background)"`
	GracePeriodSeconds *int64 `json:"grace_period_seconds,omitempty" jsonschema:"0 deletes at once"`
	Reason             string `json:"reason,omitempty" jsonschema:"why; approvers see it as your words"`
}

func deleteResource() *Tool {
	return define(Tool{
		Name:        "delete_resource",
		Title:       "Delete one resource",
		Description: "Deletes one object by name.",
		Scopes:      []action.Scope{{Verbs: []string{action.Delete}}},
	}, func(s *jsonschema.Schema) {
		s.Properties["propagation"].Enum = []any{"Background", "Foreground", "Orphan"}
		s.Properties["grace_period_seconds"].Types, s.Properties["grace_period_seconds"].Type = nil, "integer"
		between(s, "grace_period_seconds", 0, 3600)
		limitReason(s)
	}, func(ctx context.Context, r Reader, cluster string, in deleteResourceInput) (Call, error) {
		resource, err := r.Resolve(ctx, cluster, "", in.Kind)
		if err != nil {
			return Call{}, err
		}
		if in.Propagation == "" {
			in.Propagation = "Background"
		}
		a := action.Action{
			Verb: action.Delete, Resource: resource, Namespace: in.Namespace, Name: in.Name,
			Options: action.Options{PropagationPolicy: in.Propagation, GracePeriodSeconds: in.GracePeriodSeconds},
		}
		return Call{Plan: action.Plan{Actions: []action.Action{a}}, Reason: in.Reason}, checkTarget(a)
	}, renderDeleted)
}

// renderDeleted tells an object that is gone from one that is still there: with
// finalizers or a grace period the API server answers with the object, and marks it.
func renderDeleted(responses []Response) (string, error) {
	var object struct {
		Metadata metav1.ObjectMeta `json:"metadata"`
		Spec     struct {
			Finalizers []string `json:"finalizers"` // of a namespace
		} `json:"spec"`
	}
	// What is no such object is the Status of one that is gone.
	_ = kjson.UnmarshalCaseSensitivePreserveInts(responses[0].Body, &object)
	waits := append(object.Metadata.Finalizers, object.Spec.Finalizers...)
	grace := object.Metadata.DeletionGracePeriodSeconds
	switch {
	case object.Metadata.DeletionTimestamp == nil, len(waits) == 0 && grace != nil && *grace == 0:
		return renderChange("deleted")(responses)
	case len(waits) > 0:
		return renderChange("is being deleted; waits for finalizers " + strings.Join(waits, ", "))(responses)
	}
	return renderChange("is being deleted")(responses)
}

// maxName is the longest name of an object (RFC 1123 subdomain).
const maxName = 253

// checkTarget refuses a request about one object that does not say which.
func checkTarget(a action.Action) error {
	if err := checkNamespace(a.Resource, a.Namespace); err != nil {
		return err
	}
	if a.Name == "" {
		return BadArgument("name is empty")
	}
	return nil
}

// checkNamespace refuses a namespace that is missing, or where there is none.
func checkNamespace(resource action.Resource, namespace string) error {
	switch {
	case resource.Namespaced && namespace == "":
		return BadArgument("%s live in namespaces: give namespace", resource.GroupResource())
	case !resource.Namespaced && namespace != "":
		return BadArgument("%s do not live in namespaces: leave namespace out", resource.GroupResource())
	}
	return nil
}

// checkNames refuses a name or namespace that the API server would refuse, or
// that would make another path of the request's URL, before policy sees it.
func checkNames(a action.Action) error {
	if len(a.Name) > maxName {
		return BadArgument("name has %d bytes; at most %d are taken", len(a.Name), maxName)
	}
	if wrong := content.IsPathSegmentName(a.Name); a.Name != "" && len(wrong) > 0 {
		return BadArgument("name %q %s", a.Name, strings.Join(wrong, ", "))
	}
	if wrong := validation.IsDNS1123Label(a.Namespace); a.Namespace != "" && len(wrong) > 0 {
		return BadArgument("namespace %.100q: %s", a.Namespace, strings.Join(wrong, ", "))
	}
	return nil
}
