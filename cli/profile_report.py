def render_report(made, data):
    return "<html></html>"
