package tools

import (
	"bytes"
	"fmt"
	"strings"
	"text/tabwriter"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"

	"countersign/audit"
)

// renderTable writes a server-side Table as aligned columns, the columns of
// default width only, as kubectl get does.
func renderTable(responses []Response) (string, error) {
	r := responses[0]
	var table metav1.Table
	if err := kjson.UnmarshalCaseSensitivePreserveInts(r.Body, &table); err != nil {
		return "", fmt.Errorf("reading the table: %w", err)
	}
	if table.Kind != "Table" {
		return "", fmt.Errorf("reading the table: the API server answered with %s", table.Kind)
	}
	if len(table.Rows) == 0 {
		where := ""
		if r.Action.Namespace != "" {
			where = " in namespace " + r.Action.Namespace
		}
		return "No " + r.Action.Resource.GroupResource() + " found" + where + ".", nil
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	namespaces := r.Action.Resource.Namespaced && r.Action.Namespace == ""
	var cells []string
	if namespaces {
		cells = append(cells, "NAMESPACE")
	}
	for _, column := range table.ColumnDefinitions {
		if column.Priority == 0 {
			cells = append(cells, strings.ToUpper(column.Name))
		}
	}
	fmt.Fprintln(w, strings.Join(cells, "\t"))
	shown := 0
	for _, row := range table.Rows {
		cells = cells[:0]
		if namespaces {
			cells = append(cells, rowNamespace(row))
		}
		for i, cell := range row.Cells {
			if i < len(table.ColumnDefinitions) && table.ColumnDefinitions[i].Priority == 0 {
				cells = append(cells, cellText(cell))
			}
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
		if shown++; shown*40 > 2*maxBytes {
			break
		}
	}
	w.Flush()
	text := b.String()
	var cut string
	if len(text) > maxBytes {
		text = text[:strings.LastIndexByte(text[:maxBytes], '\n')+1]
		shown = strings.Count(text, "\n") - 1
		cut = fmt.Sprintf("Cut at %d of the %d fetched: narrow with label_selector, field_selector or limit.\n", shown, len(table.Rows))
	}
	if table.RemainingItemCount != nil && *table.RemainingItemCount > 0 {
		cut += fmt.Sprintf("%d of %d shown.", shown, int64(len(table.Rows))+*table.RemainingItemCount)
	} else if table.Continue != "" {
		cut += fmt.Sprintf("%d shown, and there are more.", shown)
	}
	if table.Continue != "" && shown == len(table.Rows) { // else it would leave out the rows that were cut
		cut += " Narrow with label_selector or field_selector, or go on with continue: " + table.Continue + "\n"
	}
	return text + cut, nil
}

// rowNamespace reads the namespace from the row's metadata, which the server
// sends as a PartialObjectMetadata when it is asked for tables over all namespaces.
func rowNamespace(row metav1.TableRow) string {
	var partial metav1.PartialObjectMetadata
	if err := kjson.UnmarshalCaseSensitivePreserveInts(row.Object.Raw, &partial); err != nil {
		return "?"
	}
	return partial.Namespace
}

// cellText is a cell on one line; one without a value is empty, as in kubectl get.
func cellText(cell any) string {
	if cell == nil {
		return ""
	}
	text := strings.Join(strings.Fields(fmt.Sprint(cell)), " ")
	if utf8.RuneCountInString(text) > maxCell {
		text = string([]rune(text)[:maxCell]) + "..." // every row is padded to the widest
	}
	return text
}

// maxCell bounds one cell of a table, in characters.
const maxCell = 120

// renderObject writes one object as YAML, with secret values masked and without
// what nobody reads.
func renderObject(responses []Response) (string, error) {
	var object map[string]any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(responses[0].Body, &object); err != nil {
		return "", fmt.Errorf("reading the object: %w", err)
	}
	if meta, ok := object["metadata"].(map[string]any); ok {
		delete(meta, "managedFields")
		if annotations, ok := meta["annotations"].(map[string]any); ok {
			delete(annotations, "kubectl.kubernetes.io/last-applied-configuration")
		}
	}
	secret := responses[0].Action.Resource.GroupResource() == "secrets"
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(audit.MaskObject(object, secret)); err != nil {
		return "", fmt.Errorf("writing YAML: %w", err)
	}
	return cutEnd(b.String(), "get a smaller object, or list it"), nil
}

// renderLog shows the end of what was fetched, whole lines.
func renderLog(responses []Response) (string, error) {
	omitted := responses[0].Omitted
	text := strings.ToValidUTF8(string(responses[0].Body), "\uFFFD")
	if text == "" {
		return "The log is empty.", nil
	}
	if len(text) <= maxBytes && omitted == 0 {
		return text, nil
	}
	tail := text[max(len(text)-maxBytes, 0):]
	if i := strings.IndexByte(tail, '\n'); i >= 0 && i < len(tail)-1 {
		tail = tail[i+1:]
	} else {
		tail = strings.ToValidUTF8(tail, "") // a single line, cut within a character
	}
	return fmt.Sprintf("(the last %d of %d bytes; narrow with tail_lines or since_seconds)\n%s", len(tail), int64(len(text))+omitted, tail), nil
}

// cutEnd bounds a text and says what was left out.
func cutEnd(text, how string) string {
	if len(text) <= maxBytes {
		return text
	}
	end := maxBytes
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return fmt.Sprintf("%s\n(the first %d of %d bytes; to see less: %s)\n", text[:end], end, len(text), how)
}

// renderChange says in one line an Action what became of the object.
func renderChange(verb string) func([]Response) (string, error) {
	return func(responses []Response) (string, error) {
		lines := make([]string, len(responses))
		for i, r := range responses {
			target := r.Action.Name
			if target == "" { // the API server has made it up
				var created metav1.PartialObjectMetadata
				if err := kjson.UnmarshalCaseSensitivePreserveInts(r.Body, &created); err != nil {
					return "", fmt.Errorf("reading the created object: %w", err)
				}
				target = created.Name
			}
			if r.Action.Namespace != "" {
				target = r.Action.Namespace + "/" + target
			}
			lines[i] = fmt.Sprintf("%s %s %s", r.Action.Resource.GroupResource(), target, verb)
			if r.Action.Subresource == "scale" {
				var scale struct {
					Spec struct {
						Replicas int64 `json:"replicas"`
					} `json:"spec"`
				}
				if err := kjson.UnmarshalCaseSensitivePreserveInts(r.Body, &scale); err != nil {
					return "", fmt.Errorf("reading the scale: %w", err)
				}
				lines[i] += fmt.Sprintf(" to %d replicas", scale.Spec.Replicas)
			}
		}
		return strings.Join(lines, "\n"), nil
	}
}
