// Package slack shows questions in Slack and takes people's answers there. It
// is the only room with slack-go.
//
// What it shows is rendered from the server's stored Operation, never from what
// Slack echoes. What somebody else wrote goes into plain_text and rich_text
// alone, which Slack does not interpret, and through [approvals.Visible].
//
// Who may decide and what a vote does is not decided here but in approvals; this
// room says who somebody is in Slack.
package slack
